"""Sweeps: variants x k x d_sae x sites x seeds on one stream of activations, measured and compared at equal L0."""

from .file import SHIPPED, SuiteFile, suite_file
from .outlook import Assumed, Outlook, outlook
from .plan import Asked, Plan
from .results import Sweep
from .work import launch_sweep, run_sweep, sweep
