"""Sweeps on a Ray cluster: a job of the cluster steers them, each group is a task; both outlive the notebook."""

from .jobs import Submitted, submit, submitted
