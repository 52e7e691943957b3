"""Time and peak memory of exact matching: python tests/bench_matching.py [LATENTS] [D_IN] [random | alike]

alike: the second dictionary is the first in another order, three fifths of its rows leaning away by up to 40 degrees,
the others by more than 60; rows lie near parents and mostly in few dimensions, as learned ones do.
"""

import resource
import sys
import time

import torch

from sae_lab.matching import mcc


def unit(W):
    return W / W.norm(dim=1, keepdim=True)


def dictionaries(latents, d_in, kind):
    rng = torch.Generator().manual_seed(0)
    if kind == "random":
        return torch.randn(2, latents, d_in, generator=rng)
    spectrum = torch.linspace(0, -4, d_in).exp()
    A, across = (unit(torch.randn(latents, d_in, generator=rng) * spectrum) for _ in range(2))
    A = unit(0.6 * A[torch.randint(latents // 16, (latents,), generator=rng)] + 0.8 * A)
    kept, spread = torch.rand(2, latents, generator=rng)
    cosine = torch.where(kept < 0.6, 0.75 + 0.24 * spread, 0.5 * spread)[:, None]
    B = cosine * A + (1 - cosine**2).sqrt() * across
    return A, B[torch.randperm(latents, generator=rng)]


def main(latents="16384", d_in="768", kind="random"):
    A, B = dictionaries(int(latents), int(d_in), kind)
    mcc(A[:8], B[:8])  # compiles
    begin, busy = time.perf_counter(), time.process_time()
    score, pairs = mcc(A, B)
    wall, cpu = time.perf_counter() - begin, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{kind}, {int(latents):,} x {int(latents):,} at d_in {d_in}: {score:.4f}, slack {pairs.slack:.1e}")
    print(f"{wall:.1f} s, {cpu:.1f} s of processor time, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
