"""Which precision is the quickest to choose latents in, on this machine, at this width."""

import time
from functools import cache

import torch

from .coarse import available
from .preacts import encode

EIGHT_FROM = 128  # inputs; 8 bits take 0.95 of bf16's time there, 0.81 with 192, 0.67 with 512
GAIN = 0.8  # of float32's time that bf16 may take: without hardware for it, it takes more


@cache
def half_is_quick(device: str = "cpu", d_in: int = 512) -> bool:
    """Whether products in bf16 are worth it: they are not by name alone (AVX512-BF16 doubles Zen 4's speed, and takes
    half of Sapphire Rapids' where AMX is switched off). Tried once per process and width.
    """
    rng = torch.Generator(device).manual_seed(0)  # of its own: the user's draws stay what they were
    x, W = (torch.randn(n, d_in, device=device, generator=rng) for n in (1024, 4096))
    seconds = {torch.float32: [], torch.bfloat16: []}
    for _ in range(6):
        for dtype, times in seconds.items():
            begin = time.perf_counter()
            for _, numbers in encode(x, W, choose_in=dtype)._dense(dtype, None, False):
                numbers[0, 0].item()  # a GPU has to finish
            times.append(time.perf_counter() - begin)
    full, half = (min(times[1:]) for times in seconds.values())  # what else runs only ever adds
    return half < GAIN * full


def choice_dtype(device: str = "cpu", d_in: int = 512) -> torch.dtype:
    """The quickest precision to choose in. 8 bits are known by the CPU's instructions, bf16 is tried. Two runs must not
    differ by a probe's noise: what is close is not left to a measurement.
    """
    if device == "cpu" and d_in >= EIGHT_FROM and available():
        return torch.int8
    return torch.bfloat16 if half_is_quick(device, d_in) else torch.float32
