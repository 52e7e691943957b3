"""Concept recovery: which single unit names a concept best, and how well on text it was not chosen on.

For every concept one unit AND its threshold are chosen by F1 on one split and scored on another. The same code serves
latents, random dictionaries and single neurons, so that their numbers can be compared.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse

from .sparse.kernels import best_cuts

HIGHEST = 0.2  # share of tokens: what a neuron's threshold can pick at most; concepts beyond are not averaged


@dataclass(frozen=True)
class Firings:
    """Who fired where and how strongly: one entry per nonzero of `units` units on `tokens` tokens."""

    unit: Int[np.ndarray, " nnz"]
    token: Int[np.ndarray, " nnz"]
    value: Float[np.ndarray, " nnz"]
    units: int
    tokens: int

    @classmethod
    def of_dense(cls, acts: Float[np.ndarray, "tokens units"], share: float = HIGHEST) -> "Firings":
        """The positive entries among the highest `share` of each unit: what a threshold could pick."""
        by_unit = torch.from_numpy(acts).T.contiguous()  # torch looks through it on all threads
        place = len(acts) - max(1, int(share * len(acts)))
        floor = by_unit.kthvalue(place + 1, dim=1).values.clamp(min=torch.finfo(by_unit.dtype).smallest_normal)
        picked = by_unit >= floor[:, None]
        unit, token = picked.nonzero().int().T.numpy()
        return cls(unit, token, by_unit[picked].numpy(), *by_unit.shape)

    @classmethod
    def joined(cls, parts: "Sequence[Firings]") -> "Firings":
        """Those of one text after another."""
        first = np.cumsum([0, *(f.tokens for f in parts)])
        token = np.concatenate([f.token + start for start, f in zip(first, parts)])
        unit, value = (np.concatenate([getattr(f, name) for f in parts]) for name in ("unit", "value"))
        return cls(unit, token, value, parts[0].units, int(first[-1]))

    @property
    def matrix(self) -> sparse.csc_array:
        """[tokens, units], with the values."""
        return sparse.csc_array((self.value, (self.token, self.unit)), shape=(self.tokens, self.units))

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


def best_f1(firings: Firings, labels: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """(F1, threshold) of each unit's best threshold for each concept, both [units, concepts].

    Args:
        labels: [tokens, concepts], true where the token carries the concept.
    """
    narrow = np.uint16 if firings.units <= 2**16 else np.int64  # 16 bits are sorted by counting
    order = np.argsort(firings.unit.astype(narrow), kind="stable")
    first = np.concatenate([[0], np.bincount(firings.unit, minlength=firings.units).cumsum()])
    positives = np.asarray(labels.astype(np.int64).sum(0)).ravel()
    return best_cuts(first, firings.token[order], firings.value[order], labels.indptr, labels.indices, positives)


def choose(firings: Firings, labels: sparse.csr_array) -> Choice:
    """Best unit and threshold by F1 for each concept, every unit and every threshold tried."""
    reached, threshold = best_f1(firings, labels)
    unit, concept = reached.argmax(0), np.arange(labels.shape[1])
    return Choice(unit, threshold[unit, concept], reached[unit, concept])


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
    by_unit = firings.matrix
    by_concept = labels.tocsc()
    for c, (unit, threshold) in enumerate(zip(choice.unit, choice.threshold)):
        span = slice(by_unit.indptr[unit], by_unit.indptr[unit + 1])
        on = by_unit.indices[span][by_unit.data[span] >= threshold]
        there = by_concept.indices[by_concept.indptr[c] : by_concept.indptr[c + 1]]
        fired[:, c] = np.bincount(doc[on], minlength=docs)
        hit[:, c] = np.bincount(doc[np.intersect1d(on, there)], minlength=docs)
    of_doc = sparse.csr_array((np.ones(len(doc)), (doc, np.arange(len(doc)))), shape=(docs, len(doc)))
    return Recovery(concepts, choice, hit, fired, (of_doc @ labels.astype(np.float64)).toarray())


class Naming:
    """The concept that names each unit of several dictionaries best, by the F1 of its firing at all."""

    def __init__(self) -> None:
        self.hits: dict[Hashable, np.ndarray] = {}
        self.fired: dict[Hashable, np.ndarray] = {}
        self.positives: float | np.ndarray = 0.0

    def add(self, firing: Mapping[Hashable, sparse.sparray], labels: sparse.sparray) -> None:
        """Counts one page: where the units of each dictionary fire, [tokens, units], and its [tokens, concepts]."""
        labels = labels.astype(np.float64)
        self.positives = self.positives + labels.sum(0)
        for key, matrix in firing.items():
            self.hits[key] = self.hits.get(key, 0) + (matrix.T @ labels).toarray()
            self.fired[key] = self.fired.get(key, 0) + matrix.sum(0)

    def best(self, key: Hashable, names: Sequence[str]) -> pd.DataFrame:
        """One row per unit of a dictionary: its concept, the concept's number and the F1."""
        reached = f1(self.hits[key], self.fired[key][:, None], self.positives)
        best = reached.argmax(1)
        return pd.DataFrame({"concept": np.array(names)[best], "f1": reached.max(1), "id": best})
