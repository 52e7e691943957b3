"""How fast a cache of activations is read: python tests/bench_cache.py FOLDER [--gigabytes 2]

Makes a cache of random rows, 512 wide in float16, in FOLDER if there is none. "shards": one after another, with their
checksums and without; "ring": shuffled batches of 4,096 rows, as training takes them. Ways take turns; medians.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from sae_lab.caching import Cached
from sae_lab.caching.numbers import packed
from sae_lab.caching.shards import Shards

WIDTH, ROWS = 512, 32_768


def fill(folder: str, gigabytes: float) -> None:
    shards = Shards(folder)
    if (Path(folder) / "cache.json").exists():
        return
    head = {"sites": ["L0R"], "needs": [], "widths": {"L0R": WIDTH}, "stored": "float16", "seed": 0, "documents": 64}
    shards.begin(head)
    random = torch.Generator().manual_seed(0)
    for number in range(round(gigabytes * 1e9 / (2 * WIDTH * ROWS))):
        x, error = packed(torch.randn(ROWS, WIDTH, generator=random), "float16")
        where = torch.arange(ROWS)
        rows = {"token": where, "doc": number * 64 + where // 512, "position": where % 512, "L0R": x[""]}
        shards.append(number, rows, {"error": {"L0R": error}})


def shards(source: Cached) -> float:
    """Rows per second, shard after shard."""
    begun, count = time.perf_counter(), 0
    for number in range(len(source.manifests)):
        count += len(source.block(number)["L0R"])
    return count / (time.perf_counter() - begun)


def ring(source: Cached, batches: int = 200) -> float:
    """Rows per second out of the ring, once it is full."""
    source.next(4096)
    begun = time.perf_counter()
    for _ in range(batches):
        source.next(4096)
    return batches * 4096 / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    args, rows = parser.parse_args(), []
    fill(args.folder, args.gigabytes)
    for _ in range(args.rounds):
        fresh = Cached(args.folder)
        rows.append({"shards, first read": shards(fresh), "shards, read before": shards(fresh), "ring": ring(fresh)})
    found = pd.DataFrame(rows)
    table = pd.DataFrame({"rows per second": found.median(), "least": found.min(), "most": found.max()})
    print(table.assign(**{"MB/s": table["rows per second"] * 2 * WIDTH / 1e6}).round(0).astype(int).to_string())


if __name__ == "__main__":
    main()
