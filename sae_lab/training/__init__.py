"""Training: `train` is a generator of Steps; its knobs are those of TrainConfig."""

from .config import TrainConfig
from .loop import train
from .member import Diverged
from .steps import Record, Step
