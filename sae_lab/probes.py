"""Linear probes: logistic regressions on activations or on a few latents, and what they score."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

ROWS = 4000  # a probe is fitted to at most so many rows, half of them positive where there are as many

Features = Float[np.ndarray, "rows d"]
Truth = Bool[np.ndarray, " rows"]
Tally = Float[np.ndarray, "docs 4"]


@dataclass(frozen=True)
class Probe:
    """A direction and a bias: above 0 the label is the likelier of two equally frequent classes.

    Attributes:
        cut: the score above which F1 was best on the rows fitted to, at the rate that labels have in all of them.
    """

    weight: Float[np.ndarray, " d"]
    bias: float
    cut: float

    def __call__(self, x: Features) -> Float[np.ndarray, " rows"]:
        return x @ self.weight + self.bias


def fit(x: Features, y: Truth, rows: int | None = ROWS, seed: int = 0) -> Probe:
    """Logistic regression on standardised columns, both classes weighing the same, told in the units of x.

    Raises:
        ValueError: if all rows have the label, or none has.
    """
    from sklearn.linear_model import LogisticRegression

    if y.all() or not y.any():
        raise ValueError(f"A probe needs rows with and without the label: {int(y.sum())} of {len(y)} have it.")
    some = _balanced(y, rows or len(y), np.random.default_rng(seed))
    picked = x[some].astype(np.float64)
    middle, spread = picked.mean(0), picked.std(0)
    spread[spread == 0] = 1
    found = LogisticRegression(class_weight="balanced", max_iter=2000).fit((picked - middle) / spread, y[some])
    weight = found.coef_[0] / spread
    bias = float(found.intercept_[0] - middle @ weight)
    return Probe(weight, bias, best_cut(x @ weight + bias, y))


def _balanced(y: Truth, rows: int, rng: np.random.Generator) -> Int[np.ndarray, " some"]:
    """At most `rows` row numbers: all there are, or drawn with as many positives as negatives as can be."""
    if len(y) <= rows:
        return np.arange(len(y))
    classes = [rng.permutation(np.flatnonzero(y == side)) for side in (True, False)]
    few = min(min(map(len, classes)), rows // 2)
    return np.sort(np.concatenate([c[: max(few, rows - len(other))] for c, other in zip(classes, classes[::-1])]))


def best_cut(score: Float[np.ndarray, " rows"], y: Truth) -> float:
    """The score above which F1 is best, halfway between two scores that occur."""
    order = np.argsort(-score, kind="stable")
    falling, hits = score[order], np.cumsum(y[order])
    last = np.flatnonzero(np.diff(falling, append=-np.inf))  # equal scores fall on one side
    best = last[(hits[last] / (last + 1 + hits[-1])).argmax()]
    return float((falling[best] + falling[min(best + 1, len(falling) - 1)]) / 2) if best + 1 < len(falling) else -np.inf


def mean_differences(z: Features | sparse.sparray, labels: sparse.csr_array) -> Float[np.ndarray, "labels d"]:
    """Mean of each column over the rows with a label less its mean over those without."""
    y = labels.astype(np.float64)
    positive = np.asarray(y.sum(0)).ravel()[:, None]
    with_it, total = y.T @ z, np.asarray(z.sum(0)).ravel()
    with_it = with_it.toarray() if sparse.issparse(with_it) else with_it
    return with_it / np.maximum(positive, 1) - (total - with_it) / np.maximum(labels.shape[0] - positive, 1)


def tally(on: Truth, y: Truth, doc: Int[np.ndarray, " rows"], docs: int) -> Tally:
    """Per document: rows that were hit, that were called, that have the label, and all rows."""
    return np.stack([np.bincount(doc, weights=w, minlength=docs) for w in (on & y, on, y, np.ones(len(y)))], axis=1)


def f1_of(counts: Float[np.ndarray, "*lead 4"]) -> Float[np.ndarray, "*lead"] | float:
    """F1 at the natural rate, from sums of tallies; 0 where there is nothing."""
    hit, called, positive, _ = np.moveaxis(counts, -1, 0)
    return 2 * hit / np.maximum(called + positive, 1)


def accuracy_of(counts: Float[np.ndarray, "*lead 4"]) -> Float[np.ndarray, "*lead"] | float:
    """Balanced accuracy: the accuracy if both classes were equally frequent; NaN where one is missing."""
    hit, called, positive, rows = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (hit / positive + 1 - (called - hit) / (rows - positive)) / 2
