"""What `contexts` of a whole SAE costs: tokens a second, memory above what model and SAE take, and reading one latent.

python tests/bench_contexts.py RUN [TOKENS]        a run on the embedded Llama, as `sae-lab quickstart` makes it
python tests/bench_contexts.py --wide D_SAE L0     state and time of the gathering alone, on firings drawn at random
"""

import resource
import subprocess
import sys
import time

import numpy as np
import torch

import sae_lab as sl
from sae_lab.windows.best import Best
from sae_lab.windows.neighbours import Together

READ = "import sys, time; import sae_lab as sl; from sae_lab.windows import contexts; t = time.perf_counter(); "
READ += "contexts(sys.argv[1])[int(sys.argv[2])]; print(1e3 * (time.perf_counter() - t))"


def peak() -> float:
    """MB of this process at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def of_run(folder: str, tokens: int) -> None:
    lm, sae = sl.load_model("tiny"), sl.load_sae(folder)
    sl.contexts(sae, lm, [0], tokens=20_000)  # kernels compiled, caches filled
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    found = sl.contexts(sl.Run(folder), lm, tokens=tokens, seed=time.time_ns() % 2**31)  # never what the run holds
    wall, cpu, read = time.perf_counter() - start, time.process_time() - cpu, found.about["tokens"]
    print(f"{len(found):,} latents, {read:,} tokens: {wall:.0f} s ({read / wall:,.0f} tokens/s), {cpu:.0f} s of CPU")
    print(
        f"memory: {before:,.0f} MB before, {peak():,.0f} MB at most; co-firing on {found.about['cofiring_on']:,} tokens"
    )
    took = []
    for latent in np.random.default_rng(0).permutation(list(found))[:200].tolist():
        start = time.perf_counter()
        found[latent]
        took.append(1e3 * (time.perf_counter() - start))
    print(f"one latent, store open: median {np.median(took):.2f} ms, slowest of 200 {max(took):.2f} ms")
    cold = [
        subprocess.run([sys.executable, "-c", READ, folder, str(i)], capture_output=True, text=True) for i in (5, 9)
    ]
    print("one latent, a new process that opens the store first:", ", ".join(f"{float(c.stdout):.1f} ms" for c in cold))


def wide(d_sae: int, l0: int, pages: int = 20, page: int = 8192) -> None:
    rng, before, start = np.random.default_rng(0), peak(), time.perf_counter()
    best, together = [Best(d_sae, n, 16) for n in (10, 40)], Together(d_sae)
    for i in range(pages):
        latent = np.sort((d_sae * rng.random(page * l0) ** 2).astype(np.int64))
        for b in best:
            won, slot = b.offer(
                latent, rng.integers(200, size=len(latent)) + 200 * i, rng.random(len(latent), np.float32)
            )
            b.value[latent[won], slot, 16] = 1.0
        together.add(rng.permutation(latent), np.full(page, l0))
        print(f"page {i}: {time.perf_counter() - start:.1f} s, {peak() - before:,.0f} MB above the start", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--wide":
        wide(int(sys.argv[2]), int(sys.argv[3]))
    else:
        of_run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
