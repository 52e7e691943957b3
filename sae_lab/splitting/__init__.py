"""Splitting: what became of a narrow dictionary's latents in a wider one, beside what another seed makes of them."""

from .results import Link, Splitting
from .study import split
