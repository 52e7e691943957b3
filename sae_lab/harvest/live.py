"""A model reads text, and its activations come out as shuffled batches.

Where "patched_kl" is needed, batches are whole contexts in order, without a ring, for every SAE on the stream: the
model is run again with what an SAE makes of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models import LM, splice_cost
from ..shapes import Ids, Mask
from ..sites import Site
from ..sources import Rows
from ..sparse import Mesh
from ..tokens import Blocks, TokenBlock, token_blocks
from .stream import Stream
from .turns import Turns, joined

GIVEN = {"grad", "patched_kl"}  # what a batch can carry beside activations


@dataclass(frozen=True, eq=False)
class Contexts:
    """Whole rows of text, unshuffled: see `tokens.TokenBlock` for the fields."""

    ids: Ids
    mask: Mask
    keep: Mask
    doc: Ids
    position: Ids


class Activations(Stream):
    """An endless stream of activations, shuffled unless "patched_kl" is among its needs; made by `activations`."""

    def __init__(
        self, lm: LM, sites: list[Site], blocks: Blocks, seed: int, buffer: int, needs: frozenset, about: dict
    ):
        super().__init__(sites, buffer, seed, blocks.documents, lm.device, lm.dtype, "grad" in needs)
        self.lm, self.blocks, self.needs = lm, blocks, needs
        self._whole = "patched_kl" in needs
        self._about = about
        self._context = (0, 0)  # block and row of the next context
        self._text: tuple[int, TokenBlock] | None = None  # the block that contexts were last taken from
        self._turns: Turns | None = None

    def __repr__(self) -> str:
        return f"Activations({self.lm.name} {', '.join(self.sites)}: {self.served:,} tokens served)"

    def d_in(self, site: str) -> int:
        return self.lm.d_in(site)

    def next(self, n: int = 4096) -> dict[Site, Rows]:
        """The next `n` rows of every site, drawn without replacement from the ring; `n` is the same in every call.

        A stream that gives "patched_kl" serves the tokens of `contexts(n)` instead, in their order.

        Raises:
            ValueError: if `n` changes during a stream, or is less than a context of one that serves these.
        """
        return self._next_whole(n) if self._whole else super().next(n)

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
        tensors, told = super().state()
        return tensors, told | {"context": list(self._context)}

    def restore(self, tensors: dict[str, Tensor], told: dict) -> None:
        super().restore(tensors, told)
        self._context = tuple(told["context"])

    def block(self, number: int) -> dict[str, Tensor]:
        """Every row of a block that counts, in reading order, with its token id ("token")."""
        parts, block = list(self._read_block(number)), self.blocks.block(number)
        return {name: torch.cat([p[name] for p in parts]) for name in parts[0]} | {"token": block.ids[block.keep]}

    def share(self, mesh: Mesh | None) -> None:
        """From here on the processes of a mesh read in turn what all of them serve; with None each by itself again."""
        self._turns = mesh and Turns(mesh, lambda number: joined(list(self._read_alone(number))), self._empty)

    def describe(self) -> dict:
        """JSON that rebuilds the stream: arguments of `activations`, and what identifies model and text."""
        return {
            "model": self.lm.name,
            **({"remote": True} if self.lm.remote else {}),
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "sites": [str(s) for s in self.sites],
            "buffer": self.buffer,
            "needs": sorted(self.needs),
            **self._about,
            **self.blocks.describe(),
        }

    def _begin(self) -> None:
        if self.lm.remote:
            raise ValueError(
                f"{self.lm.name} is remote: what is read there is kept, so that no token is paid for twice. Fill a "
                "cache, cache(lm, sites, tokens, folder), and train on Cached(folder)."
            )
        super()._begin()
        if self._whole:  # whole contexts pass through no ring
            self._ring, self._piece, self._fresh = {}, {}, iter(())

    def _next_whole(self, n: int) -> dict[Site, Rows]:
        """The tokens of the next contexts, with what it costs to replace them."""
        self._begin()
        self._keep_to(n)
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

    def _read_block(self, number: int, row: int = 0) -> Iterator[dict[str, Tensor]]:
        if self._turns is None:
            yield from self._read_alone(number, row)
        elif len((whole := self._turns(number))["row"]) > row:
            yield {name: a[row:] for name, a in whole.items()}

    def _read_alone(self, number: int, row: int = 0) -> Iterator[dict[str, Tensor]]:
        block, before = self.blocks.block(number), 0
        rows = len(block.ids) if self.lm.remote else max(1, self.lm.at_once // block.ids.shape[1])
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
        rows = dict(self.lm.rows(ids, self.stored, mask, keep))
        if self._grads:
            grads = self.lm.gradients(ids, list(dict.fromkeys(s.target for s in self.sites)), mask=mask)
            rows |= {f"{s}.grad": grads[s.target][keep.to(self.lm.device)] for s in self.sites}
        return rows | {"doc": block.doc[cut, :width][keep], "position": block.position[cut, :width][keep]}


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
