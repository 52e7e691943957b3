"""A batch's latents are their nonzeros. Two products touch them, and each is the other's gradient.

`Support` says where (which latents, token by token); `Latents` are values there. With W of [d_sae, d_in]:
    dots(support, rows, W)    one number per nonzero:  <rows[token], W[latent]>           encode; d decode / d value
    sums(support, value, W)   one row per token:       sum of value * W[latent]           decode; d encode / d x
    latent_sums               one row per latent:      sums(support.T), the gradient of W, of either
Where a batch fires densely on the latents it touches at all, the same calls become dense products over those latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..shapes import Acts, LatentMask, PerLatent, Places, Rows, Scalar, Starts, Values, Weights
from .backends import backend_of
from .mesh import mesh, tokens, total
from .scratch import scratch

# share of (tokens x touched latents) that fires, measured: for W that fits a cache; for larger
DENSE_ABOVE = (0.4, 0.2)
CACHE = 2**24  # bytes of W up to which the first number holds


class Support:
    """Where a batch is nonzero: latents `latent[start[t]:start[t + 1]]` of token t, ascending, each once.

    Attributes:
        order: of a transposed support: where each nonzero was.
        score: what each nonzero was chosen by, where that is known.
    """

    def __init__(
        self, latent: Places, start: Starts, d_sae: int, order: Tensor | None = None, score: Tensor | None = None
    ):
        if len(latent) >= 2**31:
            raise ValueError(f"{len(latent)} nonzeros in one batch; the limit is 2**31. Use fewer tokens per batch.")
        self.latent, self.start, self.d_sae, self.order, self.score = latent, start, d_sae, order, score
        self._touched: dict[float, tuple[Tensor, Tensor] | None] = {}

    @property
    def tok(self) -> int:
        return len(self.start) - 1

    @classmethod
    def where(cls, mask: Tensor) -> "Support":
        """The True entries of a mask."""
        return cls(mask.nonzero()[:, 1].int(), starts(mask.sum(1)), mask.shape[1])

    @classmethod
    def rows(cls, latent: Tensor, d_sae: int) -> "Support":
        """The same number of latents for every token, in any order: what `torch.topk` returns."""
        tok, k = latent.shape
        ends = torch.arange(tok + 1, device=latent.device) * k
        return cls(latent.sort(1).values.int().ravel(), ends, d_sae)

    @cached_property
    def T(self) -> "Support":
        """Latents and tokens exchanged; `order` says where each nonzero was."""
        first, row, order = backend_of(self.latent).transpose(self.start, self.latent, self.d_sae)
        return Support(row, first, self.tok, order)

    @cached_property
    def token(self) -> Tensor:
        """The token of each nonzero."""
        return torch.repeat_interleave(torch.arange(self.tok, device=self.start.device), self.start.diff())

    def touched(self, share: float) -> tuple[Tensor, Tensor] | None:
        """Latents that occur and each nonzero's place in [tok, touched], if more than `share` of it fires."""
        if share not in self._touched:
            self._touched[share] = self._touch(share)
        return self._touched[share]

    def _touch(self, share: float) -> tuple[Tensor, Tensor] | None:
        if len(self.latent) <= share * self.tok:
            return None
        used = self.T.start.diff() > 0
        n = int(used.sum())
        if len(self.latent) <= share * self.tok * n:
            return None
        return used.nonzero()[:, 0], self.token * n + (used.cumsum(0) - 1)[self.latent]

    def split(self, bounds: Sequence[int]) -> "Support":
        """Token t's latents as one row per prefix: row t * len(bounds) + l ends before latent bounds[l].

        Raises:
            ValueError: unless the bounds ascend and end with d_sae: every latent belongs to a row.
        """
        if not bounds or bounds[-1] != self.d_sae or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"bounds={list(bounds)} must ascend and end with d_sae={self.d_sae}.")
        return self._cut_at(bounds)

    def _cut_at(self, bounds: Sequence[int]) -> "Support":
        key = self.token * self.d_sae + self.latent
        first = torch.arange(self.tok, device=key.device)[:, None] * self.d_sae
        ends = first + torch.tensor(list(bounds), device=key.device)
        return Support(self.latent, torch.cat([self.start[:1], torch.searchsorted(key, ends.ravel())]), self.d_sae)

    def relabel(self, index: Tensor, d_sae: int) -> "Support":
        """The same nonzeros in a wider dictionary: latent i is called index[i]. `index` ascends."""
        return Support(index.int()[self.latent], self.start, d_sae, score=self.score)

    def replaced(self, tokens: Tensor, by: "Support") -> "Support":
        """The nonzeros of some tokens, and their scores, exchanged for those of `by`, token for token."""
        count = self.start.diff().index_copy(0, tokens, by.start.diff())
        start, stay = starts(count), torch.ones(self.tok, dtype=torch.bool, device=tokens.device)
        stay[tokens] = False
        latent, score = self.latent.new_empty(int(start[-1])), self.score.new_empty(int(start[-1]))
        mine = stay[self.token].nonzero()[:, 0]
        for s, places, token in ((self, mine, self.token[mine]), (by, slice(None), tokens[by.token])):
            within = torch.arange(len(s.latent), device=start.device)[places] - s.start[s.token[places]]
            latent[start[token] + within], score[start[token] + within] = s.latent[places], s.score[places]
        return Support(latent, start, self.d_sae, score=score)

    def subset(self, keep: Tensor) -> "Support":
        """The nonzeros that `keep` marks, with their scores."""
        latent, count, score = backend_of(keep).compact(self.start, self.latent, self.score, keep)
        return Support(latent, starts(count), self.d_sae, score=score)


def starts(count: Tensor) -> Tensor:
    """Running sums from zero: where each row begins, and the total."""
    return torch.cat([count.new_zeros(1, dtype=torch.long), count.cumsum(0)])


@torch.no_grad()
def dots(s: Support, rows: Rows, W: Weights) -> Values:
    """<rows[token], W[latent]> for each nonzero."""
    if (t := s.touched(_share(W))) is not None:
        used, place = t
        return torch.mm(rows, W[used].T, out=scratch((s.tok, len(used)), W.dtype, W.device)).view(-1)[place]
    return backend_of(W).dots(s.start, s.latent, rows, W)


@torch.no_grad()
def sums(s: Support, value: Values, W: Weights) -> Rows:
    """The sum of value * W[latent] for each token."""
    if (t := s.touched(_share(W))) is not None:
        out = W.new_empty(s.tok, W.shape[1])  # a product into given memory is none of autocast's
        return torch.mm(_scattered(s, t, value), W[t[0]], out=out)
    return backend_of(W).sums(s.start, s.latent, value, W)


@torch.no_grad()
def latent_sums(s: Support, value: Values, rows: Rows) -> Weights:
    """The sum of value * rows[token] for each latent: the gradient of a weight."""
    if (t := s.touched(_share(rows, s.d_sae))) is not None:
        out = rows.new_zeros(s.d_sae, rows.shape[1])
        out[t[0]] = torch.mm(_scattered(s, t, value).T, rows, out=rows.new_empty(len(t[0]), rows.shape[1]))
        return out
    return backend_of(rows).sums(s.T.start, s.T.latent, value[s.T.order], rows)


@torch.no_grad()
def latent_totals(s: Support, value: Values) -> PerLatent:
    """The sum of the values of each latent."""
    return backend_of(value).totals(s.T.start, value[s.T.order])


@torch.no_grad()
def combined(per_latent: PerLatent, W: Weights) -> Tensor:
    """per_latent @ W."""
    return backend_of(W).combined(per_latent, W)


def _share(W: Tensor, d_sae: int | None = None) -> float:
    return DENSE_ABOVE[(d_sae or len(W)) * W.shape[1] * W.element_size() > CACHE]


def _scattered(s: Support, touched: tuple[Tensor, Tensor], value: Tensor) -> Tensor:
    used, place = touched
    dense = scratch((s.tok, len(used)), value.dtype, value.device).zero_()
    dense.view(-1)[place] = value
    return dense


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, W_dec, support):
        ctx.save_for_backward(value, W_dec)
        ctx.support = support
        return sums(support, value, W_dec)

    @staticmethod
    def backward(ctx, g):
        (value, W), s, need = ctx.saved_tensors, ctx.support, ctx.needs_input_grad
        return dots(s, g, W) if need[0] else None, latent_sums(s, value, g) if need[1] else None, None


class _At(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vector, support):
        ctx.support = support
        return vector[support.latent]

    @staticmethod
    def backward(ctx, q):
        return latent_totals(ctx.support, q), None


@dataclass(frozen=True)
class Latents:
    """Values at the nonzeros. Entries that are exactly zero may be stored; they do not count as firing.

    Attributes:
        lead: the leading axes of the activations these latents came from; `decode` gives them back.
    """

    value: Values
    support: Support
    lead: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.lead is None:
            object.__setattr__(self, "lead", (self.support.tok,))

    def __repr__(self) -> str:
        s = self.support
        return (
            f"Latents(tokens {list(self.lead)}, d_sae {s.d_sae:,}, {len(s.latent):,} stored, l0 {float(self.l0):.1f})"
        )

    def at(self, vector: PerLatent) -> Values:
        """A number per latent (threshold, norm, bias ...) at the nonzeros; its gradient is summed per latent."""
        return _At.apply(vector, self.support)

    def to(self, value: Values) -> "Latents":
        """Other values on the same support."""
        return replace(self, value=value)

    def relu(self) -> "Latents":
        return self.to(self.value.relu())

    def detach(self) -> "Latents":
        return self.to(self.value.detach())

    def split(self, bounds: Sequence[int]) -> "Latents":
        """Each token's latents as one row per prefix of the dictionary: rows (token, level)."""
        devices = mesh()
        if devices is None:
            return Latents(self.value, self.support.split(bounds), (*self.lead, len(bounds)))
        here = devices.local(list(bounds), self.support.d_sae)  # some prefixes may end outside of this slice
        return Latents(self.value, self.support._cut_at(here), (*self.lead, len(bounds)))

    def dense(self) -> Acts:
        """All [.., d_sae] numbers, for looking at; an objective never needs them."""
        s = self.support
        out = self.value.new_zeros(s.tok * s.d_sae)
        return out.index_put((s.token * s.d_sae + s.latent,), self.value).view(*self.lead, s.d_sae)

    @property
    def l0(self) -> Scalar:
        """Latents that fire per token, mean; a tensor, so that nobody waits for a device."""
        return total((self.value != 0).sum(), "all") / max(1, tokens(self.support.tok))

    @property
    def fired(self) -> LatentMask:
        """Latents that fire anywhere in the batch."""
        out = torch.zeros(self.support.d_sae, dtype=torch.bool, device=self.value.device)
        out[self.support.latent[self.value != 0]] = True
        return out if (m := mesh()) is None else m.reduced(out.int(), "data") > 0


def decode(z: Latents, W_dec: Weights) -> Acts:
    """z @ W_dec; gradient to the values and to W_dec."""
    return total(_Decode.apply(z.value, W_dec, z.support), "latents").view(*z.lead, W_dec.shape[1])
