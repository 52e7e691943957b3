"""Edits: what is added to activations while a model reads or writes, row by row."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lab.models import there
from sae_lab.shapes import Acts, Direction, Mask
from sae_lab.sites import Site

RowMask = Bool[Tensor, " seq"]


@dataclass(frozen=True, eq=False)
class Edit:
    """Adds `strength * vector` to the activations at a site, at tokens that are not special.

    Edits of one row read the same activations, and what they add adds up. At a TC site what is read is the MLP's input
    and the sum is with its output.

    Attributes:
        strength: a number, or a function from activations [..., d_in] to one number each ([...]), for example to bring
            a latent to a value.
        prompt: whether the prompt is edited, or which of its tokens; the BOS is number 0.
        new: whether new tokens are edited.
        sees: makes of the activations what a function `strength` is given; computed once for all rows that share it.
    """

    site: str
    vector: Direction
    strength: float | Callable[[Any], Tensor] = 1.0
    prompt: bool | slice = True
    new: bool = True
    sees: Callable[[Acts], Tensor] | None = None

    def reaches(self, seq: int, end: int) -> RowMask:
        """Which of a row's tokens it edits, of which `end` are the prompt."""
        chosen = torch.full((seq,), self.new)
        chosen[:end] = False
        chosen[:end][self.prompt if isinstance(self.prompt, slice) else slice(None)] = self.prompt is not False
        return chosen

    def check(self, prompt: Sequence[int], special: Collection[int]) -> None:
        """Raises:
        ValueError: places that the prompt does not have, or at which it has special tokens alone.
        """
        if not isinstance(self.prompt, slice):
            return
        n, (first, last) = len(prompt), (self.prompt.start, self.prompt.stop)
        outside = any(end is not None and not -n <= end <= n for end in (first, last))
        if outside or all(i in special for i in prompt[self.prompt]):
            shown = ":".join("" if end is None else str(end) for end in (first, last))
            raise ValueError(
                f"No token at {shown} of the prompt to edit: it has {n}, and special ones (a BOS is number 0) keep "
                f"their activations. Give places from 0:{n}."
            )


def changes(
    rows: Sequence[tuple[Edit, ...]], where: Mask, reach: Callable[[int, Edit], RowMask] | None
) -> dict[Site, Callable]:
    """One change per site, in which every row gets its own edits.

    Args:
        where: tokens that may be edited.
        reach: which of a row's tokens an edit is for; None: new tokens alone are read.
    """
    return {site: _change(edits) for site, edits in _by_site(rows, where, reach).items()}


def fixed(
    rows: Sequence[tuple[Edit, ...]], where: Mask, reach: Callable[[int, Edit], RowMask] | None
) -> dict[Site, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """As `changes`, in numbers that can be sent: rows, vectors, masks and amounts of each site's edits."""
    found = {}
    for site, edits in _by_site(rows, where, reach).items():
        amounts = torch.tensor([[float(edit.strength)] for _, edit, _ in edits])
        vectors = torch.stack([edit.vector.detach().float().cpu() for _, edit, _ in edits])
        masks = torch.stack([mask.cpu() for *_, mask in edits])
        found[site] = (torch.tensor([row for row, *_ in edits]), vectors, masks, amounts)
    return found


def _by_site(rows: Any, where: Mask, reach: Any) -> dict[Site, list[tuple[int, Edit, RowMask]]]:
    active = [(r, e) for r, row in enumerate(rows) for e in row if reach or e.new]
    masked = [(r, e, where[r] & reach(r, e).to(where.device) if reach else where[r]) for r, e in active]
    sites = {Site(e.site) for _, e in active}
    return {site: [edit for edit in masked if Site(edit[1].site) == site] for site in sites}


def _change(edits: list[tuple[int, Edit, RowMask]]) -> Callable[[Tensor, Tensor], Tensor]:
    def change(x: Tensor, old: Tensor) -> Tensor:
        exact = torch.promote_types(old.dtype, torch.float32)
        vectors = torch.stack([edit.vector.to(old.device, exact) for _, edit, _ in edits])
        masks, rows = torch.stack([mask for *_, mask in edits]), torch.tensor([row for row, *_ in edits])
        return there.added(rows, vectors, masks, _amounts(edits, x, vectors))(x, old)

    return change


def _amounts(edits: list[tuple[int, Edit, RowMask]], x: Acts, like: Tensor) -> Float[Tensor, "edits _"]:
    """How much of its vector each edit adds at each token."""
    moving = [i for i, (_, edit, _) in enumerate(edits) if callable(edit.strength)]
    fixed = [0.0 if callable(edit.strength) else edit.strength for _, edit, _ in edits]
    amounts = like.new_tensor(fixed)[:, None]
    if not moving:
        return amounts
    amounts = amounts.repeat(1, x.shape[1])
    for sees in {edits[i][1].sees: None for i in moving}:
        some = [i for i in moving if edits[i][1].sees is sees]
        rows = sorted({edits[i][0] for i in some})
        seen = x[rows] if sees is None else sees(x[rows])
        for i in some:
            amounts[i] = edits[i][1].strength(seen[rows.index(edits[i][0])])
    return amounts
