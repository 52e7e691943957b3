"""What reconstructions cost the model they are spliced into, with the gradients that end-to-end training needs.

Unusual here: gradients are taken in the forward pass, a few rows of text at a time, and kept, one [tok, d_in] for each
number. So the model's graph never spans more than those rows, however long a batch is and however many SAEs share it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_lab.shapes import Ids, Mask, Rows
from sae_lab.sites import Site
from sae_lab.sources import Cost

GRADED = 2048  # tokens whose graph through the model exists at a time


def splice_cost(lm: Any, ids: Ids, site: str, mask: Mask, where: Mask, x_hat: Rows, later: bool = False) -> Cost:
    """What it costs to have `x_hat`, a row for each token of `where`, in place of the activations that a site writes.

    Raises:
        ValueError: as `LM.read`; `later` at a site behind which no layer reads a residual.
    """
    moved = later_residuals(lm, site) if later else []
    pieces, rows = [], max(1, GRADED // ids.shape[1])
    for some in zip(ids.split(rows), mask.split(rows), where.split(rows)):
        width = int(some[1].sum(1).max())  # the last rows of a text are shorter
        pieces.append(partial(_piece, lm, site, *(a[:, :width] for a in some), moved))
    kl, *errors = _Cost.apply(x_hat, pieces, [int(w.sum()) for w in where.split(rows)], 2 if later else 1)
    return Cost(kl, errors[0] if later else torch.zeros_like(kl))


def later_residuals(lm: Any, site: str) -> list[Site]:
    """The residuals behind a site that a layer reads: all but the last layer's, which only the head does.

    Raises:
        ValueError: if there are none.
    """
    found = [s for s in lm.sites("R")[:-1] if s.order > Site(site).order]
    if not found:
        raise ValueError(
            f"Behind {site} no layer of {lm.name} reads a residual that could be compared: it has {lm.n_layers} "
            "layers. Take an earlier site, or ask for the KL alone."
        )
    return found


def _piece(
    lm: Any, site: str, ids: Ids, mask: Mask, where: Mask, moved: list[Site], x_hat: Rows
) -> list[tuple[Tensor, Tensor]]:
    """KL and, if asked for, later errors of some rows of text: each as (sum, how many tokens it is a sum over)."""
    where = where.to(lm.device)
    part = x_hat.to(lm.device)
    new = part.new_zeros(*ids.shape, part.shape[1]).masked_scatter(where[..., None], part)
    out = lm.splice(ids, site, lambda _: new, mask, where, grad=part.requires_grad, moved=moved)
    numbers = [(out.kl[out.counts].sum(), out.counts.sum())]
    if moved:
        numbers.append((sum(far[where].sum() for far in out.moved.values()) / len(moved), where.sum()))
    return numbers


class _Cost(torch.autograd.Function):
    """Means over all pieces of what each sums; the slopes of the means are known as soon as their values are."""

    @staticmethod
    def forward(ctx, x_hat: Tensor, pieces: list[Callable[[Tensor], Any]], tokens: list[int], numbers: int):
        graded = ctx.needs_input_grad[0]
        totals, counts = x_hat.new_zeros(numbers), x_hat.new_zeros(numbers)
        slopes = x_hat.new_zeros(numbers, *x_hat.shape) if graded else None
        for i, (part, piece) in enumerate(zip(x_hat.detach().split(tokens), pieces)):
            with torch.set_grad_enabled(graded):
                found = piece(part.requires_grad_(graded))
            for j, (total, count) in enumerate(found):
                totals[j] += total.detach().to(totals)
                counts[j] += count.to(counts)
                if graded:
                    (slope,) = torch.autograd.grad(total, part, retain_graph=j + 1 < numbers)
                    slopes[j].split(tokens)[i].copy_(slope)
        counts.clamp_(min=1)
        if graded:
            ctx.save_for_backward(slopes / counts[:, None, None])
        return tuple(totals / counts)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (slopes,) = ctx.saved_tensors
        return torch.einsum("n,nti->ti", torch.stack(grads), slopes), None, None, None
