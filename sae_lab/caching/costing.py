"""What it would take to cache a text, before anything is read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..models import LM
from .making import expected, reading, size

WAIT = 2.0  # seconds that a server takes for a request beside sending its result, an assumption
SPEED = 20e6  # bytes a second of the line to it, an assumption


@dataclass(frozen=True)
class CacheCost:
    """An estimate for `cache`.

    Attributes:
        tokens: that will be there.
        requests: to a server; 0 where the model is here.
        received: bytes over the line, uncompressed.
        disk: bytes of the cache.
        seconds: of the requests, if each waits for `wait` seconds and the line brings `speed` bytes a second.
    """

    tokens: int
    requests: int
    received: int
    disk: int
    wait: float
    speed: float

    @property
    def seconds(self) -> float:
        return self.requests * self.wait + self.received / self.speed

    def __str__(self) -> str:
        told = f"{self.tokens:,} tokens, {self.disk / 1e9:,.3g} GB of disk"
        if not self.requests:
            return told
        return (
            f"{told}; {self.requests:,} requests, {self.received / 1e9:,.3g} GB to receive, "
            f"{self.seconds / 60:,.1f} minutes at {self.wait:g} s a request and {self.speed / 1e6:g} MB/s (assumed)"
        )


def cache_cost(
    lm: LM,
    sites: str | Iterable[str],
    tokens: int,
    *,
    dtype: str = "float16",
    wait: float = WAIT,
    speed: float = SPEED,
    **options: Any,
) -> CacheCost:
    """What `cache` would take, from the text's first blocks alone; nothing is read by the model.

    Raises:
        ValueError: as `cache`.
    """
    if tokens < 1:
        raise ValueError(f"tokens={tokens} must be at least 1.")
    source = reading(lm, sites, **options)
    tokens, shards = expected(source, tokens)
    widths = [source.d_in(name.removesuffix(".grad")) for name in source.names]
    grads = any(name.endswith(".grad") for name in source.names)
    received = tokens * sum(widths) * lm.dtype.itemsize if lm.remote else 0
    disk = size(widths, tokens, dtype)
    return CacheCost(tokens, shards * (2 if grads else 1) if lm.remote else 0, received, disk, wait, speed)
