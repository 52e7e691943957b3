"""Training: `train` is a generator of Steps; its knobs are those of TrainConfig."""

from .config import TrainConfig
from .loop import train
from .steps import Record, Step
