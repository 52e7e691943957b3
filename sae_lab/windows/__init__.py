"""Contexts: what every latent fires on in held-out text, with what it promotes and who fires with it."""

from .results import Card, Context, Contexts
from .verb import contexts
