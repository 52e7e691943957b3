"""How many latents no other seed finds, the more seeds there are: a power law with an offset (arXiv:2501.16615)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.optimize import minimize_scalar, nnls
from scipy.special import comb

SEEDS = 6  # under which no law is fitted: three constants go through almost any three or four shares
STEEPEST = 8.0


@dataclass(frozen=True)
class Law:
    """share = offset + scale * seeds^-exponent; the offset is what more and more seeds would still leave unique."""

    offset: float
    scale: float
    exponent: float

    def __call__(self, seeds: Any) -> Any:
        """The share at a number of seeds, or at several."""
        return self.offset + self.scale * np.asarray(seeds, float) ** -self.exponent

    @classmethod
    def fit(cls, shares: dict[int, float]) -> "Law":
        """By least squares; neither offset nor scale is below 0.

        Args:
            shares: by how many seeds there are in all.
        """
        seeds, share = np.array([*shares], float), np.array([*shares.values()])

        def given(exponent: float) -> tuple[np.ndarray, float]:
            return nnls(np.stack([np.ones_like(seeds), seeds**-exponent], axis=1), share)

        tried = np.geomspace(0.01, STEEPEST, 200)
        best = int(np.argmin([given(e)[1] for e in tried]))
        reach = tried[max(0, best - 1)], tried[min(len(tried) - 1, best + 1)]
        exponent = minimize_scalar(lambda e: given(e)[1], bounds=reach, method="bounded", options={"xatol": 1e-7}).x
        (offset, scale), _ = given(exponent)
        return cls(float(offset), float(scale), float(exponent))


def unique(found: Sequence[Int[np.ndarray, " _"]], seeds: int) -> float:
    """The share of latents that are in none of `seeds` - 1 others: mean over SAEs and over every choice of the others.

    Args:
        found: for each SAE, in how many of all the others each of its latents is.
    """
    others = len(found) - 1
    missed = comb(others - np.arange(others + 1), seeds - 1) / comb(others, seeds - 1)
    return float(np.mean([missed[times].mean() for times in found]))
