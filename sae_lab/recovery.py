"""Concept recovery: which single unit names a concept best, and how well on text it was not chosen on.

For every concept one unit AND its threshold are chosen by F1 on one split and scored on another. The same code serves
latents, random dictionaries and single neurons, so that their numbers can be compared.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

LEVELS = np.unique(np.concatenate([np.geomspace(1e-3, 1, 25), np.linspace(0.1, 1, 10)]))  # shares of a unit's firings


@dataclass(frozen=True)
class Firings:
    """Who fired where and how strongly: one entry per nonzero of `units` units on `tokens` tokens."""

    unit: Int[np.ndarray, " nnz"]
    token: Int[np.ndarray, " nnz"]
    value: Float[np.ndarray, " nnz"]
    units: int
    tokens: int

    @classmethod
    def of_dense(cls, acts: Float[np.ndarray, "tokens units"], share: float = 0.2) -> "Firings":
        """The positive entries among the highest `share` of each unit: what a threshold could pick."""
        floor = np.maximum(np.quantile(acts, 1 - share, axis=0), 0)
        token, unit = np.nonzero(acts > floor)
        return cls(unit, token, acts[token, unit], acts.shape[1], len(acts))

    def only(self, units: Int[np.ndarray, " some"]) -> "Firings":
        """The same firings of a few units, renumbered in the order given."""
        place = np.full(self.units, -1)
        place[units] = np.arange(len(units))
        kept = place[self.unit] >= 0
        return Firings(place[self.unit[kept]], self.token[kept], self.value[kept], len(units), self.tokens)


@dataclass(frozen=True)
class Choice:
    """For each concept the unit and the threshold that named it best on the split used for choosing."""

    unit: Int[np.ndarray, " concepts"]
    threshold: Float[np.ndarray, " concepts"]
    f1: Float[np.ndarray, " concepts"]


def choose(firings: Firings, labels: sparse.csr_array) -> Choice:
    """Best unit and threshold by F1: the unit at one of `LEVELS` of its firings, then its exact best threshold.

    Args:
        labels: [tokens, concepts], true where the token carries the concept.
    """
    order = np.lexsort((-firings.value, firings.unit))
    unit, token, value = firings.unit[order], firings.token[order], firings.value[order]
    first = np.concatenate([[0], np.bincount(unit, minlength=firings.units).cumsum()])
    positives = np.asarray(labels.astype(np.int64).sum(0)).ravel()
    best = _f1_at_levels(unit, token, first, labels, positives).max(1).argmax(0)
    threshold, reached = np.full(len(best), np.inf), np.zeros(len(best))
    columns = labels.tocsc()
    for c, u in enumerate(best):
        span = slice(first[u], first[u + 1])
        if span.start == span.stop:
            continue
        there = columns.indices[columns.indptr[c] : columns.indptr[c + 1]]
        hits = np.isin(token[span], there).cumsum()
        curve = f1(hits, np.arange(1, len(hits) + 1), positives[c])
        curve[:-1][value[span][:-1] == value[span][1:]] = -1  # a threshold cannot part equal values
        threshold[c], reached[c] = value[span][curve.argmax()], curve.max()
    return Choice(best, threshold, reached)


def _f1_at_levels(unit, token, first, labels, positives) -> Float[np.ndarray, "units levels concepts"]:
    """F1 of each unit cut at each level; firings come sorted, strongest first within a unit."""
    count, units = first[1:] - first[:-1], len(first) - 1
    cuts = np.maximum(np.ceil(LEVELS[None, :] * count[:, None]).astype(np.int64), 1)  # firings kept at each level
    rank, level = np.arange(len(unit)) - first[unit], np.empty(len(unit), np.int64)
    for i in range(len(LEVELS) - 1, -1, -1):
        level[rank < cuts[unit, i]] = i
    place = (unit * len(LEVELS) + level, token)
    rows = sparse.csr_array((np.ones(len(unit), np.float32), place), shape=(units * len(LEVELS), labels.shape[0]))
    hits = (rows @ labels.astype(np.float32)).toarray().reshape(units, len(LEVELS), -1).cumsum(1)
    return f1(hits, np.minimum(cuts, count[:, None])[:, :, None], positives)


@dataclass(frozen=True)
class Recovery:
    """How well each concept's chosen unit names it on held-out text; counts are per document, for intervals."""

    concepts: tuple[str, ...]
    choice: Choice
    hit: Float[np.ndarray, "docs concepts"]
    fired: Float[np.ndarray, "docs concepts"]
    positive: Float[np.ndarray, "docs concepts"]

    @property
    def table(self) -> pd.DataFrame:
        hit, fired, positive = (a.sum(0) for a in (self.hit, self.fired, self.positive))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {
                "concept": self.concepts,
                "unit": self.choice.unit,
                "threshold": self.choice.threshold,
                "f1": f1(hit, fired, positive),
                "precision": hit / fired,
                "recall": hit / positive,
                "positives": positive.astype(int),
            }
        return pd.DataFrame(columns)

    def mean_f1(self, chosen: np.ndarray, weights: Float[np.ndarray, "draws docs"]) -> Float[np.ndarray, " draws"]:
        """Mean F1 over the chosen concepts, once per row of document weights."""
        return f1(*(weights @ a[:, chosen] for a in (self.hit, self.fired, self.positive))).mean(1)


def f1(hit, fired, positive):
    """Harmonic mean of precision and recall, 0 where nothing fired and nothing was there."""
    return 2 * hit / np.maximum(fired + positive, 1)


def score(
    firings: Firings,
    labels: sparse.csr_array,
    choice: Choice,
    doc: Int[np.ndarray, " tokens"],
    concepts: tuple[str, ...],
) -> Recovery:
    """Counts of hits, firings and positives per document for choices made on other text.

    Args:
        doc: document number of each token, 0 ... docs - 1.
    """
    docs = int(doc.max()) + 1
    hit, fired = np.zeros((docs, len(concepts))), np.zeros((docs, len(concepts)))
    by_unit = sparse.csc_array((firings.value, (firings.token, firings.unit)), shape=(firings.tokens, firings.units))
    by_concept = labels.tocsc()
    for c, (unit, threshold) in enumerate(zip(choice.unit, choice.threshold)):
        span = slice(by_unit.indptr[unit], by_unit.indptr[unit + 1])
        on = by_unit.indices[span][by_unit.data[span] >= threshold]
        there = by_concept.indices[by_concept.indptr[c] : by_concept.indptr[c + 1]]
        fired[:, c] = np.bincount(doc[on], minlength=docs)
        hit[:, c] = np.bincount(doc[np.intersect1d(on, there)], minlength=docs)
    of_doc = sparse.csr_array((np.ones(len(doc)), (doc, np.arange(len(doc)))), shape=(docs, len(doc)))
    return Recovery(concepts, choice, hit, fired, (of_doc @ labels.astype(np.float64)).toarray())
