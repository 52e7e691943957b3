"""Which latents fire: exact, deterministic choices among POSITIVE scores that arrive a few tokens at a time.

    topk(scores, k)              the k largest of each token
    batch_topk(scores, n)        the n largest of the batch
    group_topk(scores, k)        the largest of each of k groups of neighbouring latents
    column_topk(scores, quota)   each latent's `quota[latent]` tokens of highest score
    above(scores, floor)         all over the floor, one number or one per latent; it may be negative

Scores are a dense tensor (float64, float32 or bf16) or `Chunks` of one, so that the whole [tok, d_sae] need not exist.
Ties go to the earlier token, then the lower latent. A NaN counts as the largest: it must reach the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..shapes import LatentMask, Scores, Values
from .backends import backend_of
from .coarse import Numbers
from .latents import Support, starts

SAMPLE = 64  # tokens by which the floor of a batch is guessed
SPARE = 1.5  # how many more than those asked for should be over it
APART = 3.0  # usual errors of a rounded score by which a generous choice must reach below the exact one
SOME = 0.25  # share of latents whose own choices may reach less far


@dataclass(frozen=True)
class Chunks:
    """Scores of `tok` tokens, some at a time: iterating gives (slice of tokens, [chunk, d_sae] scores), once each.

    Attributes:
        unmade: the same before it is written anywhere, where that is possible.
    """

    tok: int
    d_sae: int
    pieces: Callable[[], Iterator[tuple[slice, Tensor]]]
    unmade: Callable[[], Iterator[tuple[slice, Numbers]]] | None = None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        return self.pieces()

    def scores(self) -> Iterator[Tensor | Numbers]:
        """The pieces in the cheapest form they come in."""
        return (score for _, score in (self.unmade or self.pieces)())

    @classmethod
    def whole(cls, scores: Scores) -> "Chunks":
        """A dense tensor as one chunk."""
        return cls(*scores.shape, lambda: iter([(slice(0, len(scores)), scores)]))


class Rule(ABC):
    """A way to choose. A new one needs `choose`; the rest makes a choice from coarse numbers exact.

    Attributes:
        exact: whether it is given exact numbers alone, so that it needs no rest.
    """

    exact: ClassVar[bool] = False

    def __call__(
        self, scores: Scores | Chunks, amount: Any, *, among: LatentMask | None = None, signed: bool = False
    ) -> Support:
        """The choice. `among` limits which latents may be chosen; `signed` chooses by absolute value."""
        if isinstance(scores, Chunks):
            return self.choose(scores, amount)
        d_sae, index = scores.shape[1], None
        if among is not None:
            index = among.nonzero()[:, 0]
            scores, amount = scores[:, index], self.within(amount, index)
        s = self.choose(Chunks.whole((scores.abs() if signed else scores).detach()), amount)
        return s if index is None else s.relabel(index, d_sae)

    @abstractmethod
    def choose(self, chunks: Chunks, amount: Any) -> Support:
        """The choice, from chunks seen once, in order."""

    def within(self, amount: Any, index: Tensor) -> Any:
        """The amount where only the latents `index` take part."""
        return amount

    def density(self, amount: Any, chunks: Chunks) -> float:
        """What share of the scores will be chosen, if that is known beforehand; else 0."""
        return 0.0

    def generous(self, amount: Any, margin: Callable[[Tensor], Tensor]) -> Any:
        """An amount that holds the exact choice where scores are rounded; `margin(floor)`: by how much, per latent."""
        return amount

    def cut(self, s: Support, score: Values, amount: Any) -> Tensor:
        """Marks the exact choice among the nonzeros of a generous one."""
        return torch.ones_like(score, dtype=torch.bool)

    def too_narrow(self, s: Support, exact: Values, keep: Tensor, generous: Any) -> bool | Tensor:
        """Whether a generous choice was too narrow for how far its scores were off, so that a better one may be out; a
        mask of tokens where each token chooses for itself."""
        return False


class TopK(Rule):
    """The k largest of each token."""

    def choose(self, chunks: Chunks, amount: int) -> Support:
        k = min(amount, chunks.d_sae)
        return _support(chunks.d_sae, [_largest(score, k) for score in chunks.scores()])

    def density(self, amount: int, chunks: Chunks) -> float:
        return amount / max(1, chunks.d_sae)

    def generous(self, amount: int, margin: Callable[[Tensor], Tensor]) -> int:
        return amount + max(16, amount // 8)

    def cut(self, s: Support, score: Values, amount: int) -> Tensor:
        return backend_of(score).prune(s.start, score, s.start.new_full((s.tok,), amount))[0]

    def too_narrow(self, s: Support, exact: Values, keep: Tensor, generous: int) -> Tensor:
        return _too_narrow(s.start, s.score, exact, keep, generous)[0]


class BatchTopK(Rule):
    """The n largest of the batch."""

    def choose(self, chunks: Chunks, amount: int) -> Support:
        found = _guessed(chunks, amount) if chunks.tok >= 2 * SAMPLE else None
        return _pooled(chunks, torch.tensor([amount]), amount, _by_batch) if found is None else found

    def density(self, amount: int, chunks: Chunks) -> float:
        return amount / max(1, chunks.tok * chunks.d_sae)

    def generous(self, amount: int, margin: Callable[[Tensor], Tensor]) -> int:
        return amount + max(16, amount // 5)  # an eighth is too few among 100,000 latents, whose scores are close

    def cut(self, s: Support, score: Values, amount: int) -> Tensor:
        return _by_batch(s, score, s.start.new_tensor([amount]))[0]

    def too_narrow(self, s: Support, exact: Values, keep: Tensor, generous: int) -> bool:
        return bool(_too_narrow(s.start[[0, -1]], s.score, exact, keep, generous)[0])


class GroupTopK(Rule):
    """The largest of each of k groups of neighbouring latents, of which the last may be smaller."""

    exact = True

    def choose(self, chunks: Chunks, amount: int) -> Support:
        size = -(-chunks.d_sae // amount)
        return _support(chunks.d_sae, [_best_of_groups(score, size) for _, score in chunks])


class ColumnTopK(Rule):
    """Each latent's own number of tokens."""

    def choose(self, chunks: Chunks, amount: Tensor) -> Support:
        return _pooled(chunks, amount, int(amount.clamp(max=chunks.tok).sum()), _by_latent)

    def within(self, amount: Tensor, index: Tensor) -> Tensor:
        return amount[index]

    def generous(self, amount: Tensor, margin: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.where(amount > 0, amount + (amount // 8).clamp(min=4), 0)

    def cut(self, s: Support, score: Values, amount: Tensor) -> Tensor:
        return _by_latent(s, score, amount)[0]

    def too_narrow(self, s: Support, exact: Values, keep: Tensor, generous: Tensor) -> bool:
        order = s.T.order.long()  # a latent has few more than its quota: some are always near
        narrow, full = _too_narrow(s.T.start, s.score[order], exact[order], keep[order], generous)
        return bool(narrow.sum() > SOME * full.sum())


class Above(Rule):
    """Everything over a floor."""

    def choose(self, chunks: Chunks, amount: Tensor | float) -> Support:
        return _support(chunks.d_sae, [_above(score, _floor(amount, score)) for score in chunks.scores()])

    def within(self, amount: Tensor | float, index: Tensor) -> Tensor | float:
        return amount[index] if isinstance(amount, Tensor) and amount.dim() else amount

    def generous(self, amount: Tensor | float, margin: Callable[[Tensor], Tensor]) -> Tensor:
        floor = torch.as_tensor(amount).detach()
        return torch.where(floor < torch.inf, floor - margin(floor), torch.inf)

    def cut(self, s: Support, score: Values, amount: Tensor | float) -> Tensor:
        floor = torch.as_tensor(amount, dtype=score.dtype, device=score.device).detach()
        return ~(score <= (floor[s.latent] if floor.dim() else floor))


topk, batch_topk, group_topk, column_topk, above = TopK(), BatchTopK(), GroupTopK(), ColumnTopK(), Above()


def _guessed(chunks: Chunks, n: int) -> Support | None:
    """The n largest of the batch by a floor guessed from its first tokens; None where the guess was far off."""
    guess, parts, found = None, [], 0
    for score in chunks.scores():
        if guess is None:
            some = score[:SAMPLE]
            positive = _above(some, _floor(0.0, score))[2]
            guess = backend_of(positive).nth_largest(positive, max(1, int(SPARE * n * len(some) / chunks.tok)))
        parts.append(_above(score, _floor(guess, score)))
        found += len(parts[-1][0])
        if found > 8 * n:
            return None
    if found < n and guess > 0:
        return None
    pool = _support(chunks.d_sae, parts)
    return pool.subset(_by_batch(pool, pool.score, pool.start.new_tensor([n]))[0])


def _pooled(chunks: Chunks, quota: Tensor, total: int, prune: Callable) -> Support:
    """The `quota` largest of each group, seeing each chunk once.

    Whatever exceeds the floor joins a pool. A full pool is pruned to the quota, and the least that stayed becomes the
    new floor: nothing at or below it can be in the answer, since `quota` better or earlier ones are known. Few tokens
    are seen at first, then as many as before, so that the floor rises before most of them are looked at.
    """
    floor, parts, seen = torch.zeros(()), [], 0

    def pruned():
        pool = _support(chunks.d_sae, parts)
        keep, least = prune(pool, pool.score, quota.to(pool.score.device))
        return pool.subset(keep), least if len(least) == chunks.d_sae else least[0]

    for chunk in chunks.scores():
        at = 0
        while not at or at < len(chunk):
            score = chunk[at : at + max(1, seen, 2 * total // max(1, chunks.d_sae))]
            parts.append(_above(score, _floor(floor, score)))
            at, seen = at + max(1, len(score)), seen + len(score)
            if sum(len(latent) for latent, *_ in parts) > 2 * total:
                pool, floor = pruned()
                parts = [(pool.latent, pool.start.diff(), pool.score)]
    return pruned()[0]


def _support(d_sae: int, found: list[tuple[Tensor, Tensor, Tensor]]) -> Support:
    """One support from the (latent, count, score) of several chunks."""
    latent, count, score = map(torch.cat, zip(*found))
    return Support(latent, starts(count), d_sae, score=score)


def _best_of_groups(score: Scores, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of each token that are the largest of their group and positive, ascending; how many; their scores."""
    spare = -score.shape[1] % size
    groups = torch.nn.functional.pad(score, (0, spare), value=-torch.inf).unflatten(1, (-1, size))
    best, place = groups.max(-1)
    latent = (place + torch.arange(0, groups.shape[1] * size, size, device=score.device)).to(torch.int32)
    keep = ~(best <= 0)  # a NaN stays
    return latent[keep], keep.sum(1), best[keep]


def _largest(score: Scores | Numbers, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return score.largest(k) if isinstance(score, Numbers) else backend_of(score).largest(score, k)


def _above(score: Scores | Numbers, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return score.above(floor) if isinstance(score, Numbers) else backend_of(score).above(score, floor)


def _by_batch(s: Support, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    return backend_of(score).prune(s.start[[0, -1]], score, quota)


def _too_narrow(start: Tensor, score: Values, exact: Values, keep: Tensor, generous: Any) -> tuple[Tensor, Tensor]:
    """Groups whose rounded scores do not reach `APART` errors below the least exact one kept; all that could not."""
    count = start.diff()
    off, least, last = backend_of(exact).reaches(start, exact, score.to(exact.dtype), keep)
    near = least - last < APART * off
    full = (count > 0) & (count >= torch.as_tensor(generous, device=count.device))
    return near & full, full


def _by_latent(s: Support, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    keep, floor = backend_of(score).prune(s.T.start, score[s.T.order], quota)
    return torch.empty_like(keep).index_copy_(0, s.T.order.long(), keep), floor


def _floor(floor: Tensor | float, score: Tensor | Numbers) -> Tensor:
    """One floor per latent, in the precision in which a score is compared."""
    wide = torch.float32 if score.dtype == torch.bfloat16 else score.dtype
    return torch.as_tensor(floor, dtype=wide, device=score.device).detach().expand(score.shape[1]).contiguous()
