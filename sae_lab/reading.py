"""Held-out text with its activations, in order: what every measurement of an SAE reads."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor

from .models import LM
from .saes import SAE
from .shapes import Mask
from .sites import Site
from .tokens import Blocks, TokenBlock


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


def walk(lm: LM, blocks: Blocks, sites: list[Site], tokens: int) -> Iterator[Page]:
    """Blocks of text until at least `tokens` kept tokens have passed."""
    seen, docs, i = 0, 0, 0
    while seen < tokens:
        block = blocks.block(i)
        names, doc = np.unique(block.doc[block.keep].numpy(), return_inverse=True)
        acts = lm.read(block.ids, sites, mask=block.mask)
        yield Page(block, block.keep, doc + docs, {s: a[block.keep.to(a.device)].float() for s, a in acts.items()})
        seen, docs, i = seen + len(doc), docs + len(names), i + 1


def home(sae: SAE, site: str | Site | None) -> Site:
    """The site an SAE belongs to.

    Raises:
        ValueError: if nobody said.
    """
    found = site or sae.origin.get("site")
    if not found:
        raise ValueError("This SAE does not know where it was trained: give site=, for example site='L3R'.")
    return Site(found)
