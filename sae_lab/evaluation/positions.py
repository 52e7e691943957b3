"""Whether an SAE holds on longer contexts than it was trained on: its numbers by position within the document.

Only documents of at least `length` tokens are read, each alone in its row and all to the same length. So every bin is
about the same documents, and what changes from bin to bin is the position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd
import torch

from .. import plots
from ..intervals import DocSums, Estimate
from ..models import LM
from ..reading import PAGE, Numbers, held_out, own_text, pages
from ..saes import SAE
from ..shapes import Ids, Mask
from ..sites import Site
from ..tokens import Blocks
from .numbers import COST, MEANS, RECONSTRUCTION, Rebuilding, costs, fitting, substitutes

NUMBERS = (  # of the reconstruction, of the splice
    {name: RECONSTRUCTION[name] for name in ("fvu", "l0")},
    {name: COST[name] for name in ("ce_increase", "ce_recovered")},
)
PATIENCE = 50  # tokens read for one of a long document, before the text counts as one of short ones


@dataclass(frozen=True)
class Positions:
    """Numbers of one SAE by position, the document's BOS being position 0.

    Attributes:
        bins: (first position, position behind the last) of each.
        numbers: by name, one estimate a bin. FVU compares with the mean of the bin's own tokens.
        trained: how many positions the SAE was trained on; None where nobody said.
        beyond: how much larger each number is behind the trained positions than within, on the same documents.
    """

    bins: tuple[tuple[int, int], ...]
    numbers: dict[str, tuple[Estimate, ...]]
    trained: int | None
    beyond: dict[str, Estimate]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row per number and bin."""
        rows = [
            (name, start, stop - 1, (start + stop - 1) / 2, e.value, e.low, e.high)
            for name, found in self.numbers.items()
            for (start, stop), e in zip(self.bins, found)
        ]
        return pd.DataFrame(rows, columns=["number", "first", "last", "position", "value", "low", "high"])

    @property
    def figure(self):
        """A panel per number, with a line where the trained context ends (plotly)."""
        titles = {"position": "position in document", **MEANS}
        return plots.numbers(self.table, "position", titles, edge=self.trained)

    def to_json(self) -> dict[str, Any]:
        beyond = {name: e.to_json() for name, e in self.beyond.items()}
        return {"bins": self.table.to_dict("records"), "trained": self.trained, "beyond": beyond, "about": self.about}

    def __repr__(self) -> str:
        shown = "; ".join(f"{name} {e:+.3f}" for name, e in self.beyond.items()) or "trained context not known"
        a = self.about
        return f"Positions 0 to {a['length'] - 1} at {a['site']} in {a['documents']} documents: beyond training {shown}"


class Long(NamedTuple):
    """Documents of one length, one a row: a token's column is its position."""

    ids: Ids
    keep: Mask
    doc: Ids


def by_position(
    sae: SAE,
    lm: LM,
    *,
    length: int = 400,
    width: int = 64,
    trained: int | None = None,
    site: str | Site | None = None,
    text: Any = None,
    split: str = "test",
    tokens: int = 100_000,
    seed: int = 0,
    **options: Any,
) -> Positions:
    """Measures an SAE by position, on documents of at least `length` tokens cut to that length.

    Args:
        width: positions in a bin; the last one may hold fewer.
        trained: how many positions it was trained on; default: what its origin says.
        tokens: of such documents, to be read at least, if the text has so many.
        options: passed on to `reading.held_out`: documents, column ...

    Raises:
        ValueError: a length the model cannot read or the text does not have, and as `evaluate`.
    """
    if not 8 <= length <= lm.context or width < 2:
        raise ValueError(f"length={length}, width={width}: {lm.name} reads 8 to {lm.context} tokens; a bin holds two.")
    site, (text, options) = fitting(sae, lm, site), own_text(sae, text, options)
    trained = trained or sae.origin.get("context")
    cut = [trained] if trained and 2 <= trained < length - 1 else []
    bins = tuple(pairwise(sorted({*range(0, length - 1, width), *cut, length})))
    blocks = held_out(lm, text, split, seed, **options | {"context": min(lm.context, max(512, length + 1))})
    sums, rebuild, numbers, seen = [[DocSums() for _ in bins] for _ in NUMBERS], Rebuilding(sae), Numbers(), 0
    for rows in long_rows(blocks, tokens, length, lm.at_once):
        seen += int(rows.keep.sum())
        for of_bins, (places, columns) in zip(sums, _measured(sae, lm, site, rows, rebuild)):
            doc, position = numbers(rows.doc[places]), places.nonzero()[:, 1].numpy()
            for (start, stop), of in zip(bins, of_bins):
                here = (position >= start) & (position < stop)
                of.add(doc[here], **{name: column[here] for name, column in columns.items()})
    found = {n: tuple(of.estimate(f) for of in parts) for parts, fs in zip(sums, NUMBERS) for n, f in fs.items()}
    about = {"site": str(site), "split": split, "length": length, "tokens": seen, "documents": sums[0][-1].docs}
    return Positions(bins, found, trained, _beyond(bins, sums, cut), about | {"model": lm.name, "seed": seed})


def long_rows(blocks: Blocks, tokens: int, length: int, size: int) -> Iterator[Long]:
    """Documents of at least `length` tokens with their BOS, cut to it, in batches of some `size` tokens.

    A part of a document that did not fit into a row begins anew, as it does for the model.

    Raises:
        ValueError: if there is none.
    """
    seen, read = 0, 0
    for block, keep in pages(blocks, PATIENCE * tokens, PAGE):
        read += int(keep.sum())
        row, end = ((block.position == length - 1) & keep).nonzero(as_tuple=True)
        place = (row[:, None], end[:, None] + torch.arange(1 - length, 1))
        found = Long(block.ids[place], keep[place], block.doc[place])
        for batch in zip(*(a.split(max(1, size // length)) for a in found)):
            if len(batch[0]) and seen < tokens:
                seen += int(batch[1].sum())
                yield Long(*batch)
        if seen >= tokens:
            return
    if not seen:
        raise ValueError(
            f"No document of {length} tokens or more among the first {read:,} tokens of this text. Give length= a "
            "smaller number, or text= of longer documents."
        )


def _measured(sae: SAE, lm: LM, site: Site, rows: Long, rebuild: Rebuilding):
    """(places, numbers there): of the reconstruction, then of the splice, both in reading order."""
    mask, device = torch.ones_like(rows.keep), sae.W_dec.device
    read = lm.read(rows.ids, [site, site.target], mask=mask)
    x, y = (read[s][rows.keep.to(read[s].device)].to(device).float() for s in (site, site.target))
    yield rows.keep, rebuild(x, y)[1]
    counts, columns = costs(lm, rows.ids, mask, rows.keep, substitutes({site: sae}, rows.keep))
    yield torch.from_numpy(counts), columns


def _beyond(bins: tuple, sums: list[list[DocSums]], cut: list[int]) -> dict[str, Estimate]:
    """By how much each number is larger behind the cut than before it."""
    found = {}
    for parts, numbers in zip(sums, NUMBERS) if cut else ():
        before = DocSums.joined([of for (_, stop), of in zip(bins, parts) if stop <= cut[0]])
        behind = DocSums.joined([of for (start, _), of in zip(bins, parts) if start >= cut[0]])
        found |= {name: before.change(behind, f) for name, f in numbers.items()}
    return found
