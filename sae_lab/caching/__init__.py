"""Activations on a disk: a text read once by a model, trained on as often as one likes, without the model."""

from .costing import CacheCost, cache_cost
from .filling import fill
from .making import Progress, cache, caching, size
from .numbers import DTYPES
from .serving import Cached
