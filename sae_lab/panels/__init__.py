"""What a notebook shows and asks: a controller without widgets, which tests can drive, and a thin face."""

from .faces import FormPanel, form
from .forms import Form, TrainingForm
