"""What reading one residual site costs beside a plain forward pass cut at the same layer: 32 x 128 tokens.

    .venv/bin/python tests/bench_read.py [model folder or name]

Prints the median of 25 interleaved runs of both, in milliseconds, and their ratio. The plain model has the layers up
to the site and nothing behind them: no norm, no head, no package.
"""

import json
import os
import sys
import time
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import sae_lab as sl

ROUNDS, ROWS, WIDTH = 25, 32, 128


def cut(module: torch.nn.Module, layer: int) -> torch.nn.Module:
    """A plain copy of a model that ends after a layer."""
    copy = type(module)(module.config)
    copy.load_state_dict(module.state_dict(), strict=False)
    copy = copy.to(module.device, module.dtype).eval().requires_grad_(False).model
    copy.layers, copy.norm = copy.layers[: layer + 1], torch.nn.Identity()
    return copy


def timed(run) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


@torch.no_grad()
def main(name: str = "tiny") -> None:
    """Measures and prints."""
    lm = sl.load_model(name)
    layer = lm.n_layers // 2
    site, plain = f"L{layer}R", cut(lm.module, layer)
    ids = torch.randint(3, lm.vocab, (ROWS, WIDTH), device=lm.device)
    runs = {"plain": lambda: plain(ids, use_cache=False)[0], "read": lambda: lm.read(ids, site)[site]}
    assert torch.equal(runs["plain"](), runs["read"]()), "both compute the same"
    times = {what: [] for what in runs}
    for _ in range(ROUNDS):
        for what, run in runs.items():
            times[what].append(timed(run))
    found = {f"{what}_ms": round(median(t), 2) for what, t in times.items()}
    ratio = round(median(times["read"]) / median(times["plain"]), 3)
    about = {"model": name, "site": site, "threads": torch.get_num_threads(), "device": str(lm.device)}
    print(json.dumps(about | found | {"ratio": ratio}))


if __name__ == "__main__":
    main(*sys.argv[1:])
