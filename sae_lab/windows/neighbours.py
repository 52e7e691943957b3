"""Which latents belong together: those that fire on the same tokens, and those whose decoder directions are alike."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from ..shapes import Weights

KEPT = 2**24  # firings that co-firing is counted on at most; counting them takes 0.3 GB
CELLS = 2**20  # numbers of a piece of a [latents, d_sae] table that exist at a time

Latent, Score = Int[np.ndarray, "rows m"], Float[np.ndarray, "rows m"]


class Together:
    """Who fires with whom. Counts are exact; where there are more firings than `KEPT`, they are of every second token
    of the walk, every fourth ..."""

    def __init__(self, d_sae: int):
        self.d_sae, self.stride, self._stored, self._seen = d_sae, 1, 0, 0
        self._latent: list[np.ndarray] = []
        self._count: list[np.ndarray] = []  # firings of each token kept

    @property
    def tokens(self) -> int:
        """Tokens that are counted."""
        return sum(map(len, self._count))

    def add(self, latent: Int[np.ndarray, " nnz"], count: Int[np.ndarray, " tok"]) -> None:
        """The firings of the next tokens, token by token."""
        first = -self._seen % self.stride
        self._seen += len(count)
        self._append(*_every(latent, count, first, self.stride))
        while self._stored > KEPT and self.tokens > 1:
            latent, count = np.concatenate(self._latent), np.concatenate(self._count)
            self._latent, self._count, self._stored, self.stride = [], [], 0, 2 * self.stride
            self._append(*_every(latent, count, 0, 2))

    def _append(self, latent: np.ndarray, count: np.ndarray) -> None:
        self._latent.append(latent.astype(np.int32))
        self._count.append(count)
        self._stored += len(latent)

    def nearest(self, rows: Int[np.ndarray, " rows"], m: int) -> tuple[Latent, Score, Int[np.ndarray, "rows m"]]:
        """For each latent asked about the m of the highest Jaccard index (tokens of both over tokens of either), that
        index, and on how many tokens both fired; index 0 where there is no other."""
        self._latent = [np.concatenate([*self._latent, np.zeros(0, np.int32)])]  # and not twice
        latent, start = self._latent[0], np.concatenate([[0], *self._count]).cumsum().astype(np.int32)
        fires = csr_array((np.ones(len(latent), np.int32), latent, start), shape=(len(start) - 1, self.d_sae))
        who, found = fires.T.tocsr(), []
        who.data, total = fires.data, np.diff(who.indptr)  # ones, either
        for part in _parts(rows, self.d_sae):
            both = (who[part] @ fires).toarray()
            index = both / np.maximum(total[part][:, None] + total - both, 1)
            near, jaccard = _top(torch.from_numpy(index.astype(np.float32)), part, m)
            found.append((near, jaccard, np.take_along_axis(both, near.astype(np.int64), 1)))
        return tuple(np.concatenate(column) for column in zip(*found))


@torch.no_grad()
def alike(W_dec: Weights, rows: Int[np.ndarray, " rows"], m: int) -> tuple[Latent, Score]:
    """For each latent asked about the m whose directions have the highest cosine with its own, and that cosine."""
    unit = torch.nn.functional.normalize(W_dec.detach().float(), dim=1)
    found = [_top(unit[torch.from_numpy(part)] @ unit.T, part, m) for part in _parts(rows, len(unit))]
    return tuple(np.concatenate(column) for column in zip(*found))


def _parts(rows: Int[np.ndarray, " rows"], d_sae: int) -> list[np.ndarray]:
    return np.split(rows, range(max(1, CELLS // d_sae), len(rows), max(1, CELLS // d_sae)))


def _top(score: Float[Tensor, "part d_sae"], part: Int[np.ndarray, " part"], m: int) -> tuple[Latent, Score]:
    score[torch.arange(len(part)), torch.from_numpy(part)] = -torch.inf  # none is its own neighbour
    value, near = score.topk(min(m, score.shape[1] - 1))
    return near.int().cpu().numpy(), value.cpu().numpy()


def _every(latent: np.ndarray, count: np.ndarray, first: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    kept = np.zeros(len(count), bool)
    kept[first::step] = True
    return latent[np.repeat(kept, count)], count[kept]
