"""Absorption: a latent that names a family falls silent on a member, whose own latent stands in for it."""

from .letters import FirstLetters, first_letters
from .tree import Absorption, absorbed
