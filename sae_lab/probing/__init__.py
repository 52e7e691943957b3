"""Probing: how well a few latents tell labels apart, and what ablating them does to probes."""

from .ablation import Perturbation, tpp
from .few import Probing, probe
from .spurious import scr
