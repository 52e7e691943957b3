"""What a notebook shows and asks: controllers without widgets, which tests can drive, and thin faces."""

from .faces import (
    FormPanel,
    GeometryPanel,
    LatentsPanel,
    RunsPanel,
    SteerPanel,
    Tour,
    TrainPanel,
    form,
    tour,
)
from .forms import Form, TrainingForm
from .geometry import Geometry
from .latents import Latents
from .runs import Runs
from .selection import Selection
from .steering import Steering
from .training import Training
