"""Documents for tests of the tiny trainer's stream: a module of its own so that a spawned process imports little."""

import numpy as np

WORDS = [
    "the",
    "a",
    "dog",
    "cat",
    "sees",
    "finds",
    "old",
    "red",
    "boat",
    "river",
    "and",
    "then",
    "sleeps",
    "near",
    "house",
]


def documents(index: int, n: int, seed: int, split: str) -> list[tuple[str, float]]:
    """`n` texts of block `index`, a pure function of the arguments."""
    rng = np.random.default_rng((index, seed, len(split)))
    sizes = rng.integers(20, 120, size=n)
    return [(" ".join(rng.choice(WORDS, size=size)), -2.7 * size) for size in sizes]
