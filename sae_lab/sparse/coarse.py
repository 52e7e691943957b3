"""The dense product in 8 bits, to choose candidates from: half the time of bf16 where a CPU has VNNI (AVX-512 or AVX).

Each token and each latent has a scale of its own, so a loud one does not blur the rest. |x - x'| and |w - w'| are known
from rounding, and |<x, w> - <x', w'>| <= |x - x'| |w| + |x'| |w - w'|: what 8 bits may hide has a bound.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ..shapes import PerLatent, Rows
from .backends import backend_of
from .scratch import scratch

WIDTHS = range(2, 2**31 // 127**2)  # terms of a sum that surely fit 32 bits; torch multiplies rows of one wrongly
BLURRED = 0.02  # mean |x - x'| / |x| above which 8 bits are not enough; 0.007 is usual, huge coordinates raise it
HALF = 2.0**-7.9  # a rounding to bf16 of 2^-8, with room


@dataclass(frozen=True)
class Codes:
    """Rows in 8 bits: row r, of norm `norm[r]`, is `scale[r] * code[r]` and a rest of norm `lost[r]`."""

    code: Tensor
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
    """<x, W> + b in bf16, a few tokens at a time, from 8-bit codes of both.

    Attributes:
        raised: numbers are raised by what rounding may hide, so that none lies under the exact one.
    """

    x: Codes
    W: Codes
    b: PerLatent | None
    raised: bool

    @cached_property
    def _slack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of |w| and of |w - w'| in the bound, per token; the bias with its own rounding, per latent."""
        bias = torch.zeros(len(self.W.code)) if self.b is None else self.b.float()
        if not self.raised:
            return torch.zeros_like(self.x.norm), torch.zeros_like(self.x.norm), bias
        there = self.x.norm + self.x.lost  # |w'| is at most |w| + |w - w'|
        return (1 + HALF) * self.x.lost + HALF * there, (1 + HALF) * there, bias + HALF * bias.abs()

    def numbers(self, tokens: slice) -> Tensor:
        """[chunk, d_sae], in bf16."""
        x, W, (reach, blur, bias) = self.x.code[tokens], self.W, self._slack
        products = torch._int_mm(x, W.code.T, out=scratch((len(x), len(W.code)), torch.int32))
        of = backend_of(self.x.scale)
        return of.to_scale(products, self.x.scale[tokens], W.scale, bias, reach[tokens], W.norm, blur[tokens], W.lost)


@cache
def available() -> bool:
    """Whether this CPU multiplies 8-bit numbers exactly: without VNNI, sums of two products overflow 16 bits."""
    try:
        loudest = Codes(torch.full((64, 64), 127, dtype=torch.int8), *torch.ones(3, 64).unbind())
        return bool((Coarse(loudest, loudest, None, False).numbers(slice(None)) == 127 * 127 * 64).all())
    except (AttributeError, RuntimeError):
        return False
