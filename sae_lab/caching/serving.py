"""Activations from a cache: the same batches, in the same order, as the model itself would have given."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..harvest import Stream
from ..runs import Damaged
from ..sites import Site
from .numbers import unpacked
from .shards import Shards

RING = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # others are served from float32


class Cached(Stream):
    """An endless stream of shuffled activations out of a cache, from its beginning again where it ends.

    Batches are those of `activations` with the same seed, sites and buffer, but for what the stored precision lost. A
    cache of fewer tokens than the buffer is shuffled as a whole.

    Attributes:
        tokens: that it holds.
        head: what it was made of: model, text, precision.
    """

    def __init__(
        self,
        folder: str | Path,
        sites: str | Iterable[str] | None = None,
        *,
        tokens: int | None = None,
        seed: int | None = None,
        buffer: int = 65_536,
        device: str | torch.device = "cpu",
    ):
        """
        Args:
            folder: or any address that fsspec knows.
            sites: some of those that it holds; by default all.
            tokens: no more than it takes to have these, so that a cache that has grown serves as it did before.
            seed: of the shuffling; by default that of the text.

        Raises:
            FileNotFoundError: no cache, or none with a whole shard.
            ValueError: a site that it lacks.
            Damaged: files that are not as they were written.
        """
        self.shards = Shards(folder)
        self.head, self.manifests = self.shards.head, self.shards.manifests()
        if not self.manifests:
            raise FileNotFoundError(f"The cache at {self.shards.where!r} has no whole shard yet: wait, or make it.")
        if tokens is not None:
            ends = torch.tensor([m["rows"] for m in self.manifests]).cumsum(0)
            self.manifests = self.manifests[: int((ends < tokens).sum()) + 1]
        self.tokens = sum(m["rows"] for m in self.manifests)
        kept = [Site(s) for s in self.head["sites"]]
        sites = kept if sites is None else [Site(s) for s in ([sites] if isinstance(sites, str) else sites)]
        missing = [s for s in sites if s not in kept]
        if missing:
            raise ValueError(f"The cache at {self.shards.where!r} has no {missing[0]}: it has {', '.join(kept)}.")
        self.needs = frozenset(self.head["needs"])
        self._seed, kind = self.head["seed"] if seed is None else seed, RING.get(self.head["stored"], torch.float32)
        buffer, device = max(2, min(buffer, self.tokens)), torch.device(device)
        super().__init__(sites, buffer, self._seed, self.head["documents"], device, kind, "grad" in self.needs)

    @property
    def error(self) -> dict[str, float]:
        """How much of the activations the stored precision lost, relative to their spread about the mean: root mean
        square of shards. Its square is an FVU, which no SAE can go below. What the model's own precision lost before is
        not in it."""
        return {
            name: (sum(m["rows"] * m["error"][name] ** 2 for m in self.manifests) / self.tokens) ** 0.5
            for name in self.names
        }

    @property
    def bytes(self) -> int:
        """That it takes."""
        return sum(m["bytes"] for m in self.manifests)

    def d_in(self, site: str) -> int:
        return self.head["widths"][str(Site(site))]

    def describe(self) -> dict[str, Any]:
        made = {k: v for k, v in self.head.items() if k not in ("format", "sites", "widths", "seed")}
        mine = {"cache": self.shards.where, "sites": [str(s) for s in self.sites], "tokens": self.tokens}
        return made | mine | {"buffer": self.buffer, "seed": self._seed}

    def verify(self) -> int:
        """How many shards are what was written: all of them.

        Raises:
            Damaged: for the first that is not.
        """
        self.shards.forget()
        for number in range(len(self.manifests)):
            self.block(number)
        return len(self.manifests)

    def block(self, number: int) -> dict[str, Tensor]:
        """Every row of a shard, in reading order, with its token id ("token")."""
        number %= len(self.manifests)
        found = self.shards.read(number, self.manifests[number])
        names = ["token", "doc", "position", *self.names]
        widths = self.head["widths"]
        rows, count = {name: found.get(name) for name in names}, self.manifests[number]["rows"]
        for name in names:
            shape = (count, widths[name]) if name in widths else (count,)
            if rows[name] is None or rows[name].shape != shape:
                raise Damaged(f"Shard {number} of {self.shards.where!r} lacks rows of {name!r}. Cache it again.")
        for name in self.names:
            parts = {e: found[f"{name}{e}"] for e in ("", ".scale") if f"{name}{e}" in found}
            if (".scale" in parts) != (self.head["stored"] == "int8") or parts.get(".scale", found["doc"]).dim() != 1:
                raise Damaged(f"Shard {number} of {self.shards.where!r} has scales of {name!r} that do not fit it.")
            rows[name] = unpacked(parts)
        return rows

    def _read_block(self, number: int, row: int = 0) -> Iterator[dict[str, Tensor]]:
        rows = self.block(number)
        del rows["token"]
        rows["row"] = torch.arange(len(rows["doc"]))
        if row < len(rows["doc"]):
            yield {name: a[row:].to(self._device(name)) for name, a in rows.items()}

    def __repr__(self) -> str:
        held = f"{self.tokens:,} tokens at {', '.join(self.sites)} in {self.head['stored']}, {self.bytes / 1e6:,.1f} MB"
        return f"Cached({self.shards.where!r}: {held}, {self.served:,} served)"
