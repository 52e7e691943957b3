"""Sweeps: variants x k x d_sae x seeds on one stream of activations, measured and compared at equal L0."""

from .plan import Asked, Plan
from .results import Sweep
from .work import launch_sweep, run_sweep, sweep
