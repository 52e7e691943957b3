"""Held-out text with its activations, in order: what every measurement of an SAE reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from .models import LM, load_model
from .saes import SAE
from .shapes import Mask
from .sites import Site
from .tokens import Blocks, TokenBlock, token_blocks

PAGE = 8192  # tokens
SHELF = 2 * 2**30  # bytes of activations, at most, that `reading_once` keeps


@dataclass(frozen=True)
class Page:
    """One block of text as it was read.

    Attributes:
        keep: the places that count; everything below has one row per such place, in reading order.
        doc: document of each kept token, counted from 0 over the whole walk.
        acts: activations per site, float32, [kept tokens, d_in].
    """

    block: TokenBlock
    keep: Mask
    doc: Int[np.ndarray, " tok"]
    acts: dict[Site, Tensor]

    @cached_property
    def stretch(self) -> Int[np.ndarray, " tok"]:
        """Which stretch of text each kept token is of, as the model saw it: behind one BOS, without a break."""
        row, position = self.keep.nonzero()[:, 0].numpy(), self.block.position[self.keep].numpy()
        breaks = (np.diff(row, prepend=-1) != 0) | (np.diff(position, prepend=-1) <= 0)
        return np.cumsum(breaks | (np.diff(self.doc, prepend=-1) != 0))


class Numbers:
    """Documents numbered from 0 in the order in which they come."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def __call__(self, doc: Tensor) -> Int[np.ndarray, " tok"]:
        names, inverse = np.unique(doc.cpu().numpy(), return_inverse=True)
        return np.array([self._seen.setdefault(name, len(self._seen)) for name in names.tolist()], int)[inverse]


def held_out(lm: LM, text: Any, split: str, seed: int, *, context: int | None = None, **options: Any) -> Blocks:
    """Blocks of a text for measuring; rows of `context` tokens, by default 512 or what the model takes."""
    context = context or min(512, lm.context)
    if not _shelves or not isinstance(text, str):
        return token_blocks(lm.tokenizer, text, context, seed, split, **options)
    key, kept = repr((lm.name, text, context, seed, split, sorted(options.items()))), _shelves[-1].blocks
    if key not in kept:
        kept[key] = token_blocks(lm.tokenizer, text, context, seed, split, **options)
    return kept[key]


@dataclass
class _Shelf:
    """Texts by what was asked for, and what was read of them."""

    blocks: dict[str, Blocks] = field(default_factory=dict)
    pages: dict[tuple, list[Page]] = field(default_factory=dict)
    bytes: int = 0


_shelves: list[_Shelf] = []


@contextmanager
def reading_once() -> Iterator[None]:
    """Within, a text that was walked to its end is not read again by the same model at the same sites."""
    # Nothing may write into a page: the next who walks gets the same one.
    _shelves.append(_Shelf())
    try:
        yield
    finally:
        _shelves.pop()


def pages(blocks: Blocks, tokens: int, size: int = PAGE) -> Iterator[tuple[TokenBlock, Mask]]:
    """Rows of `size` tokens together and their kept places until at least `tokens` such places have passed, or the text
    begins again."""
    seen, end = 0, blocks.once
    for i in count():
        whole = blocks.block(i)
        if end is not None and whole.first >= end:
            return
        rows = max(1, size // whole.ids.shape[1])
        for first in range(0, len(whole.ids), rows):
            block = whole.rows(slice(first, first + rows))
            keep = block.keep if end is None else block.keep & (block.doc < end)
            yield block, keep
            seen += int(keep.sum())
            if seen >= tokens:
                return


def walk(lm: LM, blocks: Blocks, sites: list[Site], tokens: int, sae: SAE | None = None) -> Iterator[Page]:
    """Blocks with their activations, as long as `pages` gives them; where the SAE is, if there is one."""
    device, shelf = sae.W_dec.device if sae is not None else None, _shelves[-1] if _shelves else None
    key, read, size = (blocks, id(lm), *sites, tokens, device), [], 0
    if shelf and key in shelf.pages:
        yield from shelf.pages[key]
        return
    for page in _walk(lm, blocks, sites, tokens, device):
        yield page
        size += sum(a.nbytes for a in page.acts.values())
        read = [*read, page] if shelf and shelf.bytes + size <= SHELF else []
    if read and shelf.bytes + size <= SHELF:
        shelf.pages[key], shelf.bytes = read, shelf.bytes + size


def _walk(lm: LM, blocks: Blocks, sites: list[Site], tokens: int, device: torch.device | None) -> Iterator[Page]:
    numbers = Numbers()
    for block, keep in pages(blocks, tokens):
        rows = max(1, lm.at_once // block.ids.shape[1])
        parts = []
        for ids, mask, kept in zip(block.ids.split(rows), block.mask.split(rows), keep.split(rows)):
            read = lm.read(ids, sites, mask=mask)
            parts.append({s: a[kept.to(a.device)].to(device).float() for s, a in read.items()})
        acts = {s: torch.cat([part[s] for part in parts]) for s in sites}
        yield Page(block, keep, numbers(block.doc[keep]), acts)


def own_text(sae: SAE, text: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(text, options of `held_out`): what was asked for, else the text of the training, read as it was then.

    Raises:
        ValueError: if that text was strings or a function, which are not kept.
    """
    if text is not None:
        return text, options
    was = sae.origin.get("text", "world")
    if was in ("the given texts", "a function"):
        raise ValueError(f"This SAE was trained on {was}, which nobody kept: give text=.")
    return was, {key: sae.origin[key] for key in ("column", "context", "eos") if key in sae.origin} | options


def model_of(sae: SAE, name: str | None = None) -> LM:
    """The model that an SAE was trained on, or another, at the precision it was trained at.

    One that was remote is asked for where the environment says, never where a file does: that is sent a key.
    """
    own = sae.origin.get("model", "tiny")
    remote = bool(sae.origin.get("remote")) and name in (None, own)
    return load_model(name or own, dtype=sae.origin.get("dtype"), remote=remote)


def home(sae: SAE, site: str | Site | None) -> Site:
    """The site an SAE belongs to.

    Raises:
        ValueError: if nobody said.
    """
    found = site or sae.origin.get("site")
    if not found:
        raise ValueError("This SAE does not know where it was trained: give site=, for example site='L3R'.")
    return Site(found)


def one_home(saes: Sequence[SAE], site: str | Site | None = None) -> Site:
    """The site that SAEs share whose directions are to be compared.

    Raises:
        ValueError: if they are of several sites, models or d_in, or nobody said.
    """
    for name, values in (
        ("sites", {str(home(sae, sae.origin.get("site", site))) for sae in saes}),
        ("models", {str(sae.origin["model"]) for sae in saes if "model" in sae.origin}),
        ("d_in", {sae.cfg.d_in for sae in saes}),
    ):
        if len(values) > 1:
            shown = ", ".join(map(str, sorted(values)))
            raise ValueError(
                f"SAEs of several {name} ({shown}): directions compare only within one. Give those of one."
            )
    return home(saes[0], saes[0].origin.get("site", site))


def fitting(sae: SAE, lm: LM, site: str | Site | None) -> Site:
    """The site an SAE belongs to, which must be as wide as the SAE in this model.

    Raises:
        ValueError: as `home`, and if it is not.
    """
    found = home(sae, site)
    if lm.d_in(found) != sae.cfg.d_in:
        raise ValueError(
            f"The SAE reads d_in={sae.cfg.d_in}, but {lm.name} has {lm.d_in(found)} at {found}. Give the model and the "
            "site that it was trained on."
        )
    return found


def own_directions(sae: SAE, site: str | Site | None) -> Site:
    """The SAE's site, if its decoder rows are directions of what it reads.

    Raises:
        ValueError: for a transcoder.
    """
    if sae.cfg.transcode:
        raise ValueError("A transcoder's decoder rows are no directions of what it reads. Give an SAE.")
    return home(sae, site)
