"""Numbers with an interval: by bootstrap over documents (tokens of one document are not independent, documents are), or
by Student's t over a few runs, or by leaving out one run at a time (pairs of runs are not independent either)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit
from scipy.stats import rankdata


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self, "")

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def share(cls, hits: int, tries: int) -> "Estimate":
        """A share of independent tries with Wilson's interval."""
        if tries < 1:
            raise ValueError(f"A share of {tries} tries is no number: give at least one.")
        z, p = 1.959964, hits / tries
        middle = (p + z * z / (2 * tries)) / (1 + z * z / tries)
        reach = z / (1 + z * z / tries) * np.sqrt(p * (1 - p) / tries + z * z / (4 * tries * tries))
        return cls(p, float(max(0.0, middle - reach)), float(min(1.0, middle + reach)))

    @classmethod
    def mean(cls, values: Sequence[float]) -> "Estimate":
        """The mean of a few independent runs with Student's t interval, which takes them to be normal; NaN for one."""
        n, middle = len(values), float(np.mean(values)) if len(values) else float("nan")
        if n < 2:
            return cls(middle, float("nan"), float("nan"))
        reach = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
        return cls(middle, middle - reach, middle + reach)

    @classmethod
    def jackknife(cls, value: float, without: Sequence[float]) -> "Estimate":
        """A statistic of n runs and of pairs of them, from its value without each run; NaN limits under three runs."""
        n = len(without)
        if n < 3:
            return cls(value, float("nan"), float("nan"))
        reach = float(stdtrit(n - 1, 0.975) * np.sqrt((n - 1) * np.var(without)))
        return cls(value, value - reach, value + reach)


def draws(docs: int, n: int, seed: int = 0) -> Float[np.ndarray, "draws docs"]:
    """How often each document is drawn: row 0 is the sample itself, the others are n resamplings of it."""
    counts = np.random.default_rng(seed).multinomial(docs, np.full(docs, 1 / docs), size=n)
    return np.vstack([np.ones(docs), counts]).astype(np.float64)


def interval(values: Float[np.ndarray, " draws"]) -> Estimate:
    """From a statistic on each row of `draws`: its value, and the middle 95% of its resamplings."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))


def rank_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], given: Float[np.ndarray, " n"] | None = None, n: int = 1000
) -> Estimate:
    """Spearman's, with its interval by bootstrap over the pairs; NaN where one does not vary.

    With `given` it is the partial one: what the ranks of x and y share beyond what those of a third tell of both.
    """
    known = (x, y) if given is None else (x, y, given)
    if len(x) < 3 or any(np.ptp(values) == 0 for values in known):
        return Estimate(float("nan"), float("nan"), float("nan"))
    drawn = np.random.default_rng(0).integers(len(x), size=(n, len(x)))
    drawn = np.vstack([np.arange(len(x)), drawn])
    a, b, *rest = (r - r.mean(1, keepdims=True) for r in (rankdata(v[drawn], axis=1) for v in known))
    with np.errstate(invalid="ignore", divide="ignore"):
        for c in rest:
            a, b = (r - (r * c).sum(1, keepdims=True) / (c * c).sum(1, keepdims=True) * c for r in (a, b))
        return interval((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


class Redrawn:
    """How often each document is drawn, where nobody knows how many will come: Poisson(1) times in each resampling.

    Like `draws`, with the sample itself first.
    """

    def __init__(self, n: int, seed: int = 0):
        self._rng, self._times = np.random.default_rng(seed), np.ones((0, n + 1))

    def __call__(self, doc: Int[np.ndarray, " tokens"]) -> Float[np.ndarray, "tokens draws"]:
        """One row per token; `doc` counts from 0 in the order in which documents come."""
        more, n = int(doc.max(initial=-1)) + 1 - len(self._times), self._times.shape[1] - 1
        if more > 0:
            times = np.hstack([np.ones((more, 1)), self._rng.poisson(1, (more, n))])
            self._times = np.vstack([self._times, times])
        return self._times[doc]


class DocSums:
    """Sums of named columns per document, in float64, added to as text streams by."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.docs = 0

    def add(self, doc: Int[np.ndarray, " tokens"], **columns: np.ndarray) -> None:
        """Adds per-token numbers, [tokens] or [tokens, d], to their documents' sums; `doc` counts from 0."""
        if not len(doc):
            return
        self.docs = max(self.docs, int(doc.max()) + 1)
        starts = np.flatnonzero(np.diff(doc, prepend=doc[0] - 1))  # runs of one document
        for name, column in columns.items():
            total = np.zeros((self.docs, *column.shape[1:]))
            if name in self.sums:
                total[: len(self.sums[name])] = self.sums[name]
            np.add.at(total, doc[starts], np.add.reduceat(column.astype(np.float64), starts, axis=0))
            self.sums[name] = total

    def estimate(self, statistic: Callable[[dict[str, np.ndarray]], np.ndarray], n: int = 1000) -> Estimate:
        """A statistic of the column sums (arrays with one row per draw) and its interval."""
        return interval(self._drawn(statistic, n, self.docs))

    def change(
        self, after: "DocSums", statistic: Callable[[dict[str, np.ndarray]], np.ndarray], n: int = 1000
    ) -> Estimate:
        """How much larger a statistic is in the sums of the same documents, read or measured otherwise."""
        docs = max(self.docs, after.docs)
        return interval(after._drawn(statistic, n, docs) - self._drawn(statistic, n, docs))

    def _drawn(self, statistic: Callable, n: int, docs: int) -> np.ndarray:
        weights = draws(docs, n)
        return statistic({name: weights[:, : len(total)] @ total for name, total in self.sums.items()})

    @classmethod
    def joined(cls, parts: "Sequence[DocSums]") -> "DocSums":
        """The sums of several parts of the same documents."""
        whole = cls()
        for sums in parts:
            for name, total in sums.sums.items():
                whole.add(np.arange(len(total)), **{name: total})
        return whole


def plain_json(value: Any) -> Any:
    """As JSON knows it: what is no number is null."""
    if isinstance(value, dict):
        return {key: plain_json(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(of) for of in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
