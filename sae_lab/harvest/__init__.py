"""Text read by a model becomes shuffled batches of activations: a source to train on."""

from .live import GIVEN, Activations, Contexts, activations
from .stream import Stream
