"""Peak memory of training a wide dictionary: python tests/bench_memory.py [VARIANT] [SHAPE]

A tenth of the latents are dead, so that AuxK takes its memory, too. A shape is one of `sae-lab bench step --shapes`.
"""

import resource
import sys
import time

from sae_lab.bench import heavy_tailed, sized, sparse_at, step_of

STEPS = 5


def peak() -> float:
    """Gigabytes that this process has held at most (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(variant="batchtopk", shape="wide"):
    tokens, d_in, d_sae, k = sized(shape)
    x = heavy_tailed(tokens, d_in)
    before = peak()
    step = step_of(sparse_at(variant, x, d_sae, k), x, 0.1)
    begin = time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds = (time.perf_counter() - begin) / STEPS
    print(f"{variant}, {tokens:,} tokens x {d_in:,} x {d_sae:,}, k {k}: {seconds:.2f} s per step")
    print(f"peak memory {peak():.2f} GB, of which {before:.2f} GB before the SAE was there")


if __name__ == "__main__":
    main(*sys.argv[1:])
