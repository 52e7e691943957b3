"""Batches of activations out of a ring that shuffles, whatever it is filled from.

Unusual here: what is served is a function of (seed, number of batches), so a stream resumes exactly. Its whole state is
one integer pair (block, row), a random generator and the ring; a ring too large to save is read anew, since every row
knows the block it came from.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..sites import Site
from ..sources import Rows, Statistics

SAVED_RING = 2**30  # bytes: a larger ring is read anew instead of saved
ADDRESS = ("doc", "position", "row")  # where a row is from: its document, its place there, its place in its block


class Stream(ABC):
    """An endless stream of shuffled activations. A new kind needs `d_in`, `describe` and `_read_block`.

    Attributes:
        sites: those served.
        stored: those read: sites and their targets, in the order in which a model computes them.
        served: tokens (rows) so far.
    """

    def __init__(
        self,
        sites: list[Site],
        buffer: int,
        seed: int,
        documents: int,
        device: torch.device,
        dtype: torch.dtype,
        grads: bool = False,
    ):
        """
        Args:
            documents: of a block.
            device, dtype: of the ring.
            grads: whether gradients are among the rows.
        """
        self.sites, self.buffer, self.served = sites, buffer, 0
        self.stored = sorted({*sites, *(s.target for s in sites)}, key=lambda s: s.order)
        self._documents, self._kind, self._grads = documents, (device, dtype), grads
        self._at = (0, 0)  # block and row of the next token that is read
        self._fresh: Iterator[dict[str, Tensor]] = iter(())
        self._piece: dict[str, Tensor] = {}
        self._ring: dict[str, Tensor] = {}
        self._taken: Tensor | None = None
        self._statistics: dict[Site, Statistics] = {}
        self._random = torch.Generator().manual_seed(seed)
        self._batch = 0

    @abstractmethod
    def d_in(self, site: str) -> int:
        """Width of the activations at a site."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON that rebuilds the stream, and what identifies where it reads."""

    @abstractmethod
    def _read_block(self, number: int, row: int = 0) -> Iterator[dict[str, Tensor]]:
        """Everything that is stored about the tokens of a block, from a row on, in pieces; "row" counts within it."""

    @property
    def names(self) -> list[str]:
        """What a row has beside its address: activations by site, and gradients ("L3R.grad")."""
        return [*self.stored, *(f"{s}.grad" for s in self.sites if self._grads)]

    def statistics(self, site: str) -> Statistics:
        """The scale of a site's activations, or of a target's; measured once and kept with the state."""
        if Site(site) not in self.stored:
            raise ValueError(f"No activations of {site} are read here, only of {', '.join(self.stored)}.")
        self._begin()
        return self._statistics[Site(site)]

    def next(self, n: int = 4096) -> dict[Site, Rows]:
        """The next `n` rows of every site, drawn without replacement from the ring; `n` is the same in every call.

        Raises:
            ValueError: if `n` changes during a stream.
        """
        self._begin()
        self._keep_to(n)
        if not self._batch:
            self._size_for(n)
        if self._taken is not None:
            self._refill(self._taken)
        slots = len(self._ring["doc"]) // n
        self._taken = torch.arange(n) * slots + torch.randint(slots, (n,), generator=self._random)
        self.served += n
        picked = {name: a.index_select(0, self._taken.to(a.device)) for name, a in self._ring.items()}
        return {site: self._rows(site, picked) for site in self.sites}

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, JSON) from which `restore` goes on exactly; the ring is among them while it is under 1 GB."""
        self._begin()
        tensors = {"generator": self._random.get_state()}
        size = sum(a.nbytes for a in self._ring.values())
        for name, a in self._ring.items():
            if size < SAVED_RING or name in ADDRESS:
                tensors[f"ring.{name}"] = a.clone()
        if self._taken is not None:
            tensors["taken"] = self._taken
        for site, s in self._statistics.items():
            tensors[f"mean.{site}"] = s.mean
        measured = {s: [m.mean_norm, m.mean_square, m.tokens] for s, m in self._statistics.items()}
        told = {"served": self.served, "batch": self._batch, "at": list(self._at)}
        return tensors, told | {"statistics": measured, "source": self.describe()}

    def restore(self, tensors: dict[str, Tensor], told: dict) -> None:
        """Goes on where `state` was taken.

        Raises:
            ValueError: the state is of another stream.
        """
        mine = self.describe()
        changed = [k for k in mine if told["source"].get(k) != mine[k]]
        if changed:
            was = {k: told["source"].get(k) for k in changed}
            raise ValueError(
                f"The saved stream had {was}, this one has { ({k: mine[k] for k in changed}) }: give the same."
            )
        self.served, self._batch = told["served"], told["batch"]
        self._at = tuple(told["at"])
        self._random.set_state(tensors["generator"].cpu())
        self._taken = tensors.get("taken")
        self._statistics = {
            Site(s): Statistics(norm, square, tensors[f"mean.{s}"], n)
            for s, (norm, square, n) in told["statistics"].items()
        }
        ring = {k.removeprefix("ring."): a for k, a in tensors.items() if k.startswith("ring.")}
        self._ring = {k: a.clone().to(self._device(k)) for k, a in ring.items()}
        self._fresh, self._piece = self._read(*self._at), {}
        if ring and not set(self.names) <= set(ring):
            self._read_anew()

    def _begin(self) -> None:
        """Fills the ring for the first time and measures on it."""
        if self._statistics:
            return
        self._fresh = self._read(*self._at)
        self._ring = self._empty(self.buffer)
        self._refill(torch.arange(self.buffer))
        self._statistics = {site: Statistics.of(self._ring[site]) for site in self.stored}

    def _keep_to(self, n: int) -> None:
        if self._batch not in (0, n):
            raise ValueError(
                f"A batch of {n} rows in a stream of batches of {self._batch}: ask for the same n each time."
            )

    def _size_for(self, n: int) -> None:
        """Makes the ring a multiple of the batch, at least two: rows past the end would never be served."""
        size = max(2, self.buffer // n) * n
        if size > self.buffer:
            longer = self._empty(size)
            for name, a in self._ring.items():
                longer[name][: self.buffer] = a
            self._ring = longer
            self._refill(torch.arange(self.buffer, size))
        self._ring = {name: a[:size] for name, a in self._ring.items()}
        self._batch = n

    def _device(self, name: str) -> torch.device:
        return torch.device("cpu") if name in ADDRESS else self._kind[0]

    def _empty(self, size: int) -> dict[str, Tensor]:
        (device, dtype), ring = self._kind, {n: torch.empty(size, dtype=torch.int64) for n in ADDRESS}
        widths = {name: self.d_in(name.removesuffix(".grad")) for name in self.names}
        return ring | {n: torch.empty(size, d, dtype=dtype, device=device) for n, d in widths.items()}

    def _refill(self, slots: Tensor) -> None:
        """Writes the next rows of the stream into slots of the ring."""
        done = 0
        while done < len(slots):
            if not self._piece or len(self._piece["doc"]) == 0:
                self._piece = next(self._fresh)
            here = slots[done : done + len(self._piece["doc"])]
            for name, a in self._ring.items():
                a[here.to(a.device)] = self._piece[name][: len(here)]
            self._at = (self._at[0], int(self._piece["row"][len(here) - 1]) + 1)
            self._piece = {name: a[len(here) :] for name, a in self._piece.items()}
            done += len(here)

    def _read(self, number: int, row: int) -> Iterator[dict[str, Tensor]]:
        """Rows of the stream in order, from a row of a block on, piece after piece."""
        while True:
            yield from self._read_block(number, row)
            number, row = number + 1, 0
            self._at = (number, 0)

    def _read_anew(self) -> None:
        """Fills a ring whose activations were not saved, block by block."""
        ring = self._empty(len(self._ring["doc"])) | self._ring
        number = ring["doc"] // self._documents
        for wanted in number.unique().tolist():
            slots = (number == wanted).nonzero()[:, 0]
            rows = ring["row"][slots]
            for part in self._read_block(wanted):
                first = int(part["row"][0])
                here = (rows >= first) & (rows < first + len(part["row"]))
                for name in self.names:
                    at = (rows[here] - first).to(ring[name].device)
                    ring[name][slots[here].to(at.device)] = part[name][at]
        self._ring = ring

    def _rows(self, site: Site, picked: dict[str, Tensor], patched_kl: Any = None) -> Rows:
        grad = picked[f"{site}.grad"].float() if self._grads else None
        x, target = picked[site].float(), picked[site.target].float()
        return Rows(x, target, picked["doc"], picked["position"], grad, patched_kl)
