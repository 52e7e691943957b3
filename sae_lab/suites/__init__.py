"""Suites: a sweep and the studies of it, in one table: consistency, splitting, absorption and concepts, at equal L0."""

from .results import Suite
from .work import STUDIED, asked, run_studies, suite
