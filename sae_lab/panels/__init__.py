"""What a notebook shows and asks: a controller without widgets, which tests can drive, and a thin face."""

from .faces import FormPanel, LatentsPanel, RunsPanel, TrainPanel, form
from .forms import Form, TrainingForm
from .latents import Latents
from .runs import Runs
from .selection import Selection
from .training import Training
