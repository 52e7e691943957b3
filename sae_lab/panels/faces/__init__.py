"""The widgets of the panels: thin, each over a controller that knows no widgets."""

from .form import FormPanel, form
from .geometry import GeometryPanel
from .latents import LatentsPanel
from .runs import RunsPanel
from .steer import SteerPanel
from .tour import Tour, tour
from .train import TrainPanel
