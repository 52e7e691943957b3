"""Choices among latents that are on several devices: each offers its own best, and the exact cut is made over all.

Ties go to the earlier token, then the lower latent, as on one device: slices and parts are in order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..shapes import Values
from .choose import BatchTopK, Rule, TopK
from .latents import Support
from .mesh import Mesh

SPARE = 2.0  # times its fair share that each process offers at first of a batch's best
BITS = {torch.float32: (torch.int32, 31, 11), torch.float64: (torch.int64, 63, 16)}  # seen as; how many; a pass

Offer = Callable[[int], tuple[Support, Values]]  # how many -> the best here, and what they are judged by


def choose_together(mesh: Mesh, rule: Rule, amount: int, offer: Offer) -> tuple[Support, Tensor]:
    """(what this process offered, which of it is chosen).

    Raises:
        NotImplementedError: for a rule that nobody has made across devices.
    """
    if isinstance(rule, TopK):
        s, score = offer(amount)
        return s, _best_of_tokens(mesh, s, score, amount)
    if isinstance(rule, BatchTopK):
        return _best_of_batch(mesh, amount * mesh.data, offer)
    raise NotImplementedError(f"{type(rule).__name__} chooses on one device alone: train this SAE on one.")


def _best_of_tokens(mesh: Mesh, s: Support, score: Values, k: int) -> Tensor:
    place = torch.arange(len(score), device=score.device) - s.start[s.token]
    offered = score.new_full((s.tok, k), -torch.inf)
    offered[s.token, place] = score
    every = mesh.stacked(offered, "latents").permute(1, 0, 2).reshape(s.tok, -1)
    best = every.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(every, dtype=torch.bool).scatter_(1, best, True)
    return kept[:, mesh.slice * k : (mesh.slice + 1) * k][s.token, place]


def _best_of_batch(mesh: Mesh, n: int, offer: Offer) -> tuple[Support, Tensor]:
    asked = int(SPARE * n / mesh.size("all")) + 1
    while True:
        asked = min(asked, n)
        s, score = offer(asked)
        least, need, ties = _nth_largest(mesh, score, n)
        lacking = len(score) >= asked and asked < n and not bool((_ordered(score) < least).any())
        if not mesh.reduced(torch.tensor([int(lacking)], device=score.device), "all").item():
            return s, _cut(mesh, s, score, least, need, ties)
        asked *= 4


def _nth_largest(mesh: Mesh, score: Values, n: int) -> tuple[int, int, int]:
    """(the n-th largest of all scores as an ordered integer, how many of those equal to it are among the n, how many
    are equal), by histograms of bits, some thousand counts a pass; (0, 0, 0) where there are fewer."""
    rest = _ordered(score)
    _, left, width = BITS[score.dtype]
    least, need, count = 0, n, 0
    while left:
        step = min(width, left)
        left -= step
        digit = (rest >> left) & ((1 << step) - 1)
        counts = mesh.reduced(torch.bincount(digit, minlength=1 << step), "all")
        above = counts.flip(0).cumsum(0)
        if int(above[-1]) < need:
            return 0, 0, 0
        at = int((above >= need).int().argmax())
        found = (1 << step) - 1 - at
        count = int(counts[found])
        need -= int(above[at]) - count
        least |= found << left
        rest = rest[digit == found]
    return least, need, count


def _cut(mesh: Mesh, s: Support, score: Values, least: int, need: int, ties: int) -> Tensor:
    order = _ordered(score)
    keep = order >= least
    if need == ties:
        return keep
    equal = (order == least).nonzero()[:, 0]
    key = (s.token[equal] + mesh.part * s.tok) * (s.d_sae * mesh.latents) + s.latent[equal] + mesh.slice * s.d_sae
    last = mesh.joined(key, "all").sort().values[need - 1]
    keep[equal] = key <= last
    return keep


def _ordered(score: Values) -> Tensor:
    """Positive floats as integers of the same order; a NaN comes last."""
    kind, *_ = BITS[score.dtype]
    return (score.contiguous().view(kind) & torch.iinfo(kind).max).long()
