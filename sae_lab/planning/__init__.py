"""What a training would take elsewhere, or larger: a machine is gauged for ten seconds, the rest is worked out."""

from .gauging import gauge
from .machine import Machine
from .prediction import Prediction, predict
