"""The dense product in 8 bits, to choose candidates from: half the time of bf16 where a CPU has VNNI (AVX-512 or AVX).

Each token and each latent has a scale of its own, so a loud one does not blur the rest. |x - x'| and |w - w'| are known
from rounding, and |<x, w> - <x', w'>| <= |x - x'| |w| + |x'| |w - w'|: what 8 bits may hide has a bound.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..shapes import PerLatent, Rows
from .backends import backend_of

WIDEST = 2**31 // (255 * 127)  # terms of a sum that surely fit 32 bits
BLURRED = 0.02  # mean |x - x'| / |x| above which 8 bits are not enough; 0.007 is usual, huge coordinates raise it
HALF = 2.0**-7.9  # a rounding to bf16 of 2^-8, with room


@dataclass(frozen=True)
class Codes:
    """Rows in 8 bits: row r, of norm `norm[r]`, is `scale[r] * code[r]` and a rest of norm `lost[r]`."""

    code: Tensor
    total: Tensor  # of each row's codes
    scale: Tensor
    norm: Tensor
    lost: Tensor

    @classmethod
    def of(cls, rows: Rows) -> "Codes":
        return cls(*backend_of(rows).quantise(rows))


def blurred(x: Rows, codes: Codes) -> bool:
    """Whether rounding took too much of these tokens, judged by up to 256 of them: against their mean coordinate, which
    a few huge ones hardly raise.
    """
    some = slice(None, None, max(1, len(x) // 256))
    usual = x[some].abs().mean(1) * (math.pi / 2 * x.shape[1]) ** 0.5  # the norm of a normal vector
    return float((codes.lost[some] / usual.clamp(min=1e-30)).mean()) > BLURRED


@dataclass(frozen=True)
class Coarse:
    """<x, W> + b in bf16, from 8-bit codes of both.

    Attributes:
        raised: numbers are raised by what rounding may hide, so that none lies under the exact one.
    """

    x: Codes
    W: Codes
    b: PerLatent | None
    raised: bool

    @property
    def d_sae(self) -> int:
        return len(self.W.code)

    def times(self, price: PerLatent) -> "Coarse":
        """Each latent's numbers times its price, at least 0."""
        W = Codes(self.W.code, self.W.total, *(price * t for t in (self.W.scale, self.W.norm, self.W.lost)))
        return Coarse(self.x, W, None if self.b is None else price * self.b, self.raised)

    @cached_property
    def panels(self) -> Tensor:
        return backend_of(self.W.code).panels(self.W.code)

    @cached_property
    def bias(self) -> PerLatent:
        """With its own rounding, if raised."""
        bias = torch.zeros(self.d_sae) if self.b is None else self.b.float()
        return bias + HALF * bias.abs() if self.raised else bias

    @cached_property
    def reach(self) -> Tensor:
        """The factor of |w| in the bound, per token; |w'| is at most |w| + |w - w'|."""
        return (1 + HALF) * self.x.lost + HALF * (self.x.norm + self.x.lost) if self.raised else 0 * self.x.scale

    @cached_property
    def blur(self) -> Tensor:
        """The factor of |w - w'| in the bound, per token."""
        return (1 + HALF) * (self.x.norm + self.x.lost) if self.raised else 0 * self.x.scale


@dataclass(frozen=True)
class Numbers:
    """Coarse numbers of some tokens, to choose from before they are written anywhere.

    Attributes:
        again: latents whose numbers are wanted again, and [tokens, latents] where they go.
        boost: another product, by whose size they are raised before `largest` looks at them.
    """

    coarse: Coarse
    tokens: slice
    again: tuple[Tensor, Tensor]
    boost: Coarse | None = None

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def device(self) -> torch.device:
        return self.coarse.W.code.device

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.coarse.d_sae

    def __len__(self) -> int:
        return self.tokens.stop - self.tokens.start

    def __getitem__(self, some: slice) -> "Numbers":
        begin, end, _ = some.indices(len(self))
        index, kept = self.again
        tokens = slice(self.tokens.start + begin, self.tokens.start + end)
        return Numbers(self.coarse, tokens, (index, kept[begin:end]), self.boost)

    def largest(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        return backend_of(self.coarse.W.code).coarse_largest(self.coarse, self.tokens, k, *self.again, self.boost)

    def above(self, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return backend_of(self.coarse.W.code).coarse_above(self.coarse, self.tokens, floor, *self.again)


def available() -> bool:
    """Whether this CPU multiplies 8-bit numbers four at a time (VNNI); otherwise nothing is gained."""
    from .tile import SUPPORTED

    return SUPPORTED
