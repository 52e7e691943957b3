"""Steering: latents pushed while the model writes, and what that does to what it writes."""

from .curves import Curve, Frontier, frontier
from .experiments import BABBLE, SteeringExperiment, candidates, experiment, target
from .pushes import MODES, Activity, Push, activity, direction, typical_activation
from .response import BASELINES, Doses, doses
from .texts import openings, shows, surprise, write
from .verb import Steered, logit_changes, steer
