"""Which precision is the quickest to choose latents in, on this machine, at this width: measured, not looked up."""

import time
from functools import cache

import torch

from .coarse import Numbers
from .preacts import PreActs, encode


@cache
def choice_dtype(device: str = "cpu", d_in: int = 512) -> torch.dtype:
    """The quickest precision to choose in on this machine, measured once per process and width: fewer bits need
    hardware for them, and must be worth their second look."""
    rng = torch.Generator(device).manual_seed(0)  # of its own: the user's draws stay what they were
    x, W = (torch.randn(n, d_in, device=device, generator=rng) for n in (1024, 4096))
    spent = {dtype: [] for dtype in (torch.float32, torch.bfloat16, torch.int8)}
    for _ in range(6):
        for dtype, times in spent.items():
            pre = encode(x, W, choose_in=dtype)
            begin = time.perf_counter()
            _look_through(pre)
            times.append(time.perf_counter() - begin)
    seconds = {dtype: min(times[1:]) for dtype, times in spent.items()}  # what else runs only ever adds
    best = torch.float32
    for dtype, share in ((torch.bfloat16, 0.8), (torch.int8, 1.0)):  # in 8 bits, the time of choosing is in it already
        best = dtype if seconds[dtype] < share * seconds[best] else best
    return best


def _look_through(pre: PreActs) -> None:
    """Makes every number once; those in 8 bits are looked at while they are made."""
    if pre.coarse == torch.int8:
        again = torch.empty(0).long(), torch.empty(pre.tok, 0).bfloat16()
        numbers = Numbers(pre._product(None, False), slice(0, pre.tok), again)
        numbers.above(torch.full((pre.d_sae,), torch.inf))
    else:
        for _, out in pre._dense(pre.coarse, None, False):
            out[0, 0].item()
