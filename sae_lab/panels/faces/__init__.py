"""The widgets of the panels: thin, each over a controller that knows no widgets."""

from .form import FormPanel, form
from .latents import LatentsPanel
from .runs import RunsPanel
from .train import TrainPanel
