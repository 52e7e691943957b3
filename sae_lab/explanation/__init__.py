"""Explanations of latents, by rules, labels or language models, and eight scores of how good they are."""

from .examples import Example, Reading, Sample
from .judges import Asking, Judge, Ruled
from .results import Explained, Explanations
from .rules import Explanation, Rule
from .scorers import CHANCE, SCORERS
from .speakers import Endpoint, Local, Speaker, Unanswered
from .verb import explain
