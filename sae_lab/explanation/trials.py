"""What a scorer is given: an explanation, held-out windows, and the tools that all scorers share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from ..models import LM
from ..sites import Site
from .examples import Reading, Sample
from .judges import Judge
from .rules import Explanation

Numbers = dict[str, float]


@runtime_checkable
class Embedder(Protocol):
    """Whatever makes vectors of texts."""

    def encode(self, texts: list[str]) -> Any:
        """[texts, d]: an array, a tensor or a sparse matrix."""
        ...


class Letters:
    """Texts as weighted counts of the letter groups in their words (tf-idf of 3 to 5): an embedder without a model."""

    def __init__(self, texts: Sequence[str]):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._counter = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit(texts)

    def encode(self, texts: list[str]) -> Any:
        return self._counter.transform(re.sub(r"[\"',]", " ", text) for text in texts)  # rules quote their tokens


@dataclass(frozen=True)
class Tools:
    """What scorers share: the model, two readings, who judges, and what makes vectors of texts."""

    lm: LM
    site: Site
    directions: Float[torch.Tensor, "d_sae d_in"]
    learnt: Reading
    held: Reading
    judge: Judge
    own: Embedder | None = None

    @cached_property
    def embedder(self) -> Embedder:
        return self.own or Letters(self.learnt.texts)


@dataclass(frozen=True)
class Trial:
    """One explanation, the windows of held-out text that it is tried on, and a source of chance."""

    tools: Tools
    explanation: Explanation
    sample: Sample
    rng: np.random.Generator
