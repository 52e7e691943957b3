"""How fast the world makes text, with labels and without, on every core: python tests/bench_world.py [--texts N]"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from sae_lab.tiny import world
from sae_lab.tiny.world.tree import own_tokenizer


def made(task):
    """(tokens, seconds) of one block of texts; the tokens are counted after the clock has stopped."""
    block, texts, labelled = task
    begin = time.perf_counter()
    found = list(world.block(block, texts, 0, "test"))
    if labelled:
        for text in found:
            text.labels()
    seconds = time.perf_counter() - begin
    encoded = own_tokenizer().encode_batch([text.text for text in found], add_special_tokens=False)
    return sum(len(e.ids) for e in encoded), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=3000, help="per core")
    texts, cores = parser.parse_args().texts, len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(made, [(1000 + i, 50, True) for i in range(cores)]))  # every process builds its tables first
        for labelled in (False, True):
            done = list(pool.map(made, [(i, texts, labelled) for i in range(cores)]))
            rate = sum(tokens / seconds for tokens, seconds in done)
            print(f"{'with' if labelled else 'without'} labels: {rate:,.0f} tokens/s on {cores} cores")


if __name__ == "__main__":
    main()
