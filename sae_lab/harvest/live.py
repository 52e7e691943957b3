"""A model reads text, and its activations come out as shuffled batches.

Unusual here: what is served is a function of (seed, number of batches), so a stream resumes exactly. Its whole state is
one integer pair (block, row), a random generator and the ring of activations that shuffles; a ring too large to save is
read anew, since every row knows the block it came from. Where "patched_kl" is needed, batches are whole contexts in
order, without a ring, for every SAE on the stream: the model is run again with what an SAE makes of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .models import LM, splice_cost
from .shapes import Ids, Mask
from .sites import Site
from .sources import Rows, Statistics
from .tokens import Blocks, TokenBlock, token_blocks

SAVED_RING = 2**30  # bytes: a larger ring is read anew instead of saved
GIVEN = {"grad", "patched_kl"}  # what a batch can carry beside activations


@dataclass(frozen=True, eq=False)
class Contexts:
    """Whole rows of text, unshuffled: see `tokens.TokenBlock` for the fields."""

    ids: Ids
    mask: Mask
    keep: Mask
    doc: Ids
    position: Ids


class Activations:
    """An endless stream of activations, shuffled unless "patched_kl" is among its needs; made by `activations`.

    `sites` are those served, `served` counts tokens (rows) so far.
    """

    def __init__(
        self, lm: LM, sites: list[Site], blocks: Blocks, seed: int, buffer: int, needs: frozenset, about: dict
    ):
        self.lm, self.sites, self.blocks, self.buffer, self.needs = lm, sites, blocks, buffer, needs
        self.served = 0
        self._whole = "patched_kl" in needs
        self._about = about
        self._stored = sorted({*sites, *(s.target for s in sites)}, key=lambda s: s.order)
        self._at = (0, 0)  # block and row of the next token that is read
        self._context = (0, 0)  # block and row of the next context
        self._text: tuple[int, TokenBlock] | None = None  # the block that contexts were last taken from
        self._fresh: Iterator[dict[str, Tensor]] = iter(())
        self._piece: dict[str, Tensor] = {}
        self._ring: dict[str, Tensor] = {}
        self._taken: Tensor | None = None
        self._statistics: dict[Site, Statistics] = {}
        self._random = torch.Generator().manual_seed(seed)
        self._batch = 0

    def __repr__(self) -> str:
        return f"Activations({self.lm.name} {', '.join(self.sites)}: {self.served:,} tokens served)"

    def d_in(self, site: str) -> int:
        """Width of the activations at a site."""
        return self.lm.d_in(site)

    def statistics(self, site: str) -> Statistics:
        """The scale of a site's activations, or of a target's; measured once and kept with the state."""
        if Site(site) not in self._stored:
            raise ValueError(f"No activations of {site} are read here, only of {', '.join(self._stored)}.")
        self._begin()
        return self._statistics[Site(site)]

    def next(self, n: int = 4096) -> dict[Site, Rows]:
        """The next `n` rows of every site, drawn without replacement from the ring; `n` is the same in every call.

        A stream that gives "patched_kl" serves the tokens of `contexts(n)` instead, in their order.

        Raises:
            ValueError: if `n` changes during a stream, or is less than a context of one that serves these.
        """
        self._begin()
        if self._batch not in (0, n):
            raise ValueError(
                f"A batch of {n} rows in a stream of batches of {self._batch}: ask for the same n each time."
            )
        if self._whole:
            return self._next_whole(n)
        if not self._batch:
            self._size_for(n)
        if self._taken is not None:
            self._refill(self._taken)
        slots = len(self._ring["doc"]) // n
        self._taken = torch.arange(n) * slots + torch.randint(slots, (n,), generator=self._random)
        self.served += n
        picked = {name: a.index_select(0, self._taken.to(a.device)) for name, a in self._ring.items()}
        return {site: self._rows(site, picked) for site in self.sites}

    def contexts(self, n: int) -> Contexts:
        """The next rows of text, as they are read, that hold `n` tokens that count; a stream of its own.

        Of the last row the tokens beyond do not count, here or later: what is left is whole for a model that only looks
        back, where its other half would not be.
        """
        parts, missing = [], n
        while missing > 0:
            number, row = self._context
            if self._text is None or self._text[0] != number:
                self._text = (number, self.blocks.block(number))
            block = self._text[1]
            last = row + int((block.keep[row:].sum(1).cumsum(0) < missing).sum()) + 1
            part = {f: getattr(block, f)[row:last] for f in Contexts.__dataclass_fields__}
            missing -= int(part["keep"].sum())
            self._context = (number, last) if last < len(block.ids) else (number + 1, 0)
            parts.append(part)
        fill = {"ids": int(parts[0]["ids"][0, 0]), "mask": 0, "keep": 0, "doc": -1, "position": 0}
        found = {f: _stack([p[f] for p in parts], value) for f, value in fill.items()}
        keep = found["keep"] & (found["keep"].view(-1).cumsum(0) <= n).view_as(found["keep"])
        return Contexts(**found | {"keep": keep})

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, JSON) from which `restore` goes on exactly; the ring is among them while it is under 1 GB."""
        self._begin()
        tensors = {"generator": self._random.get_state()}
        size = sum(a.nbytes for a in self._ring.values())
        for name, a in self._ring.items():
            if size < SAVED_RING or name in ("doc", "position", "row"):
                tensors[f"ring.{name}"] = a.clone()
        if self._taken is not None:
            tensors["taken"] = self._taken
        for site, s in self._statistics.items():
            tensors[f"mean.{site}"] = s.mean
        measured = {s: [m.mean_norm, m.mean_square, m.tokens] for s, m in self._statistics.items()}
        told = {"served": self.served, "batch": self._batch, "at": list(self._at), "context": list(self._context)}
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
        self._at, self._context = tuple(told["at"]), tuple(told["context"])
        self._random.set_state(tensors["generator"].cpu())
        self._taken = tensors.get("taken")
        self._statistics = {
            Site(s): Statistics(norm, square, tensors[f"mean.{s}"], n)
            for s, (norm, square, n) in told["statistics"].items()
        }
        ring = {k.removeprefix("ring."): a for k, a in tensors.items() if k.startswith("ring.")}
        self._ring = {k: a.clone().to(self._device(k)) for k, a in ring.items()}
        self._fresh, self._piece = self._read(*self._at), {}
        if not self._whole and not set(self._names()) <= set(ring):
            self._read_anew()

    def describe(self) -> dict:
        """JSON that rebuilds the stream: arguments of `activations`, and what identifies model and text."""
        return {
            "model": self.lm.name,
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "sites": [str(s) for s in self.sites],
            "buffer": self.buffer,
            "needs": sorted(self.needs),
            **self._about,
            **self.blocks.describe(),
        }

    def _begin(self) -> None:
        """Fills the ring for the first time and measures on it; whole contexts pass through none."""
        if self._statistics:
            return
        self._fresh = self._read(*self._at)
        self._ring = self._empty(self.buffer)
        self._refill(torch.arange(self.buffer))
        self._statistics = {site: Statistics.of(self._ring[site]) for site in self._stored}
        if self._whole:
            self._ring, self._piece, self._fresh = {}, {}, iter(())

    def _next_whole(self, n: int) -> dict[Site, Rows]:
        """The tokens of the next contexts, with what it costs to replace them."""
        if n < self.blocks.context:
            raise ValueError(
                f"A batch of {n} tokens holds no whole context of {self.blocks.context}, which patched_kl needs: give "
                "a larger batch, or activations(context=...) a smaller context."
            )
        text, self._batch = self.contexts(n), n
        rows = max(1, self.lm.at_once // text.ids.shape[1])
        parts = [self._forward(text, slice(i, i + rows)) for i in range(0, len(text.ids), rows)]
        self.served += n
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        of = {site: partial(splice_cost, self.lm, text.ids, site, text.mask, text.keep) for site in self.sites}
        return {site: self._rows(site, found, of[site]) for site in self.sites}

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

    def _names(self) -> list[str]:
        return [*self._stored, *(f"{s}.grad" for s in self.sites if "grad" in self.needs)]

    def _device(self, name: str) -> torch.device:
        return torch.device("cpu") if name in ("doc", "position", "row") else self.lm.device

    def _empty(self, size: int) -> dict[str, Tensor]:
        widths = {name: self.lm.d_in(name.removesuffix(".grad")) for name in self._names()}
        ring = {n: torch.empty(size, d, dtype=self.lm.dtype, device=self.lm.device) for n, d in widths.items()}
        return ring | {n: torch.empty(size, dtype=torch.int64) for n in ("doc", "position", "row")}

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
        """Rows of the stream in order, from a row of a block on, as one forward pass after the other gives them."""
        while True:
            yield from self._read_block(number, row)
            number, row = number + 1, 0
            self._at = (number, 0)

    def _read_block(self, number: int, row: int = 0) -> Iterator[dict[str, Tensor]]:
        block, before = self.blocks.block(number), 0
        rows = max(1, self.lm.at_once // block.ids.shape[1])
        for first in range(0, len(block.ids), rows):
            cut = slice(first, first + rows)
            count = int(block.keep[cut].sum())
            if before + count > row:
                skip = max(row - before, 0)
                part = self._forward(block, cut) | {"row": torch.arange(before, before + count)}
                yield {name: a[skip:] for name, a in part.items()}
            before += count

    def _forward(self, block: TokenBlock | Contexts, cut: slice) -> dict[str, Tensor]:
        """Everything that is stored about the tokens that count in some rows of a block."""
        width = int(block.mask[cut].sum(1).max())
        ids, mask, keep = (getattr(block, f)[cut, :width] for f in ("ids", "mask", "keep"))
        found = dict(self.lm.read(ids, self._stored, mask))
        if "grad" in self.needs:
            grads = self.lm.gradients(ids, list(dict.fromkeys(s.target for s in self.sites)), mask=mask)
            found |= {f"{s}.grad": grads[s.target] for s in self.sites}
        rows = {name: a[keep.to(a.device)] for name, a in found.items()}
        return rows | {"doc": block.doc[cut, :width][keep], "position": block.position[cut, :width][keep]}

    def _read_anew(self) -> None:
        """Fills a ring whose activations were not saved, block by block."""
        ring = self._empty(len(self._ring["doc"])) | self._ring
        number = ring["doc"] // self.blocks.documents
        for wanted in number.unique().tolist():
            slots = (number == wanted).nonzero()[:, 0]
            rows = ring["row"][slots]
            for part in self._read_block(wanted):
                first = int(part["row"][0])
                here = (rows >= first) & (rows < first + len(part["row"]))
                for name in self._names():
                    at = (rows[here] - first).to(ring[name].device)
                    ring[name][slots[here].to(at.device)] = part[name][at]
        self._ring = ring

    def _rows(self, site: Site, picked: dict[str, Tensor], patched_kl: Any = None) -> Rows:
        grad = picked[f"{site}.grad"].float() if "grad" in self.needs else None
        x, target = picked[site].float(), picked[site.target].float()
        return Rows(x, target, picked["doc"], picked["position"], grad, patched_kl)


def activations(
    lm: LM,
    sites: str | Iterable[str],
    text: Any = "world",
    seed: int = 0,
    split: str = "train",
    context: int | None = None,
    buffer: int = 65_536,
    needs: Iterable[str] = (),
    **options: Any,
) -> Activations:
    """A stream of activations of a model at one or several sites, shuffled, from one forward pass of each text.

    Special tokens are read in their context and left out. Values are raw: `statistics` says their scale.

    Args:
        text: as `tokens.token_blocks`, which also takes `options`: documents, column, eos, where.
        context: tokens in a row; by default 512 or what the model takes.
        buffer: tokens that the stream shuffles over, and whose scale `statistics` measures.
        needs: {"grad"} adds the gradient of the model's loss, with respect to the target, to every row; {"patched_kl"}
            what it costs to splice reconstructions in, and then batches are whole contexts, not shuffled.

    Raises:
        ValueError: a site the model lacks, unknown needs, a context beyond the model's; and as `token_blocks`.
    """
    wanted = [Site(s) for s in ([sites] if isinstance(sites, str) else sites)]
    for site in wanted:
        lm.d_in(site)
    context = min(512, lm.context) if context is None else context
    if context > lm.context:
        raise ValueError(f"context={context} is beyond the {lm.context} tokens that {lm.name} takes.")
    if buffer < 2 or not set(needs) <= GIVEN:
        raise ValueError(f"buffer={buffer} must be at least 2, and needs={sorted(needs)} can hold {sorted(GIVEN)}.")
    blocks = token_blocks(lm.tokenizer, text, context, seed, split, **options)
    named = {k: getattr(v, "__name__", v) for k, v in options.items() if k in ("column", "where")}
    about = {"seed": seed, "split": split} | named
    return Activations(lm, wanted, blocks, seed, buffer, frozenset(needs), about)


def _stack(parts: list[Tensor], value: int) -> Tensor:
    """Rows of different widths in one tensor, filled up with `value` on the right."""
    width = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1]), value=value) for p in parts])
