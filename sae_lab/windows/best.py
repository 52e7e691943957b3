"""The best few firings of every latent while a stream of them passes by: arrays alone, no Python per token or latent.

A key ranks firings: the activation keeps the strongest, a random number a uniform sample of all there were.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

ROWS = 4096  # latents that are put in order at a time


class Best:
    """For each latent the `n` firings of the highest key, one per document at most, in slots of no order.

    Attributes:
        key: -inf where a slot is free.
        doc: document of the firing.
        place: its token, counted over the whole walk.
        value: activations around it; the middle one is its own.
    """

    def __init__(self, latents: int, n: int, width: int):
        self.key = np.full((latents, n), -np.inf, np.float32)
        self.doc = np.full((latents, n), -1, np.int64)
        self.place = np.zeros((latents, n), np.int64)
        self.value = np.zeros((latents, n, 2 * width + 1), np.float32)
        self._least = np.full(latents, -np.inf if n else np.inf, np.float32)  # what a firing must exceed

    def offer(
        self, row: Int[np.ndarray, " nnz"], doc: Int[np.ndarray, " nnz"], key: Float[np.ndarray, " nnz"]
    ) -> tuple[Int[np.ndarray, " won"], Int[np.ndarray, " won"]]:
        """Firings, ascending in `row`: (which of them are kept, in which slots); place and value are the caller's."""
        near = np.flatnonzero(key > self._least[row])
        touched, here = np.unique(row[near], return_inverse=True)
        if not len(near):
            return near, near
        n, held = self.key.shape[1], self.key[touched].size
        kept = _chosen(
            np.concatenate([np.repeat(np.arange(len(touched)), n), here]),
            np.concatenate([self.doc[touched].ravel(), doc[near]]),
            np.concatenate([self.key[touched].ravel(), key[near]]),
            n,
        )
        won, free = np.flatnonzero(kept[held:]), np.flatnonzero(~kept[:held])
        slot = free[np.searchsorted(free // n, here[won]) + _rank(here[won])] % n
        won, lost = near[won], free
        self.key[touched[lost // n], lost % n] = -np.inf
        self.key[row[won], slot], self.doc[row[won], slot] = key[won], doc[won]
        self._least[touched] = self.key[touched].min(1)
        return won, slot

    def order(self) -> None:
        """Strongest first, free slots last; a part of the latents at a time, so that nothing is there twice."""
        middle = self.value.shape[2] // 2
        for first in range(0, len(self.key), ROWS):
            part = slice(first, first + ROWS)
            rank = np.where(self.key[part] > -np.inf, self.value[part, :, middle], -np.inf)
            by = np.argsort(-rank, axis=1, kind="stable")
            for kept in (self.key, self.doc, self.place):
                kept[part] = np.take_along_axis(kept[part], by, 1)
            self.value[part] = np.take_along_axis(self.value[part], by[..., None], 1)


def _chosen(
    row: Int[np.ndarray, " all"], doc: Int[np.ndarray, " all"], key: Float[np.ndarray, " all"], n: int
) -> Bool[np.ndarray, " all"]:
    """The best of each document, and of these the n best of each row."""
    order = np.lexsort((-key, doc, row))
    first = (np.diff(row[order], prepend=-1) != 0) | (np.diff(doc[order], prepend=-2) != 0)
    order = order[first & (key[order] > -np.inf)]
    order = order[np.lexsort((-key[order], row[order]))]
    chosen = np.zeros(len(row), bool)
    chosen[order[_rank(row[order]) < n]] = True
    return chosen


def _rank(row: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
    """How many before it are of the same row; `row` ascends."""
    return np.arange(len(row)) - np.searchsorted(row, row)
