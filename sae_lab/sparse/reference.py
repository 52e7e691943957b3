"""The plain-torch backend: what the others are tested against, and what runs where there are no kernels yet."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .scratch import scratch

if TYPE_CHECKING:
    from .coarse import Coarse

TINY = 1e-30  # rows all of whose numbers are under it are all rest


def product(rows: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """rows @ W.T + b, in scratch memory."""
    out = scratch((len(rows), len(W)), W.dtype, W.device)
    return torch.mm(rows, W.T, out=out) if b is None else torch.addmm(b, rows, W.T, out=out)


def dots(start: Tensor, latent: Tensor, rows: Tensor, W: Tensor) -> Tensor:
    """One number per nonzero: <rows[t], W[latent]>."""
    return (rows[_row(start)] * W[latent]).sum(1)


def sums(start: Tensor, latent: Tensor, value: Tensor, W: Tensor) -> Tensor:
    """One row per row of the support: the sum of value * W[latent]."""
    return W.new_zeros(len(start) - 1, W.shape[1]).index_add(0, _row(start), value[:, None] * W[latent])


def totals(start: Tensor, value: Tensor) -> Tensor:
    """One number per row of the support: the sum of its values."""
    return value.new_zeros(len(start) - 1).index_add(0, _row(start), value)


def combined(per_latent: Tensor, W: Tensor) -> Tensor:
    """per_latent @ W."""
    return per_latent @ W


def transpose(start: Tensor, latent: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts the nonzeros by latent: where each latent starts, the tokens, and the old places."""
    order = latent.sort(stable=True).indices
    count = torch.bincount(latent, minlength=d_sae)
    return _starts(count), _row(start)[order].int(), order.int()


def largest(score: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of each token's k largest positive scores, ascending, how many each token has, and the scores."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
    mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True) & ~(score <= 0)
    return mask.nonzero()[:, 1].int(), mask.sum(1), score[mask]


def keep_largest(score: Tensor, k: int) -> Tensor:
    """The k largest positive scores of each token, zeros elsewhere."""
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(score).scatter_(1, order, score.gather(1, order)).clamp_(min=0)


def columns(a: Tensor, index: Tensor, out: Tensor) -> None:
    """Some columns of `a`, into `out`."""
    out.copy_(a[:, index])


def quantise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows in 8 bits: codes, their sum, each row's scale and norm, and the norm of what rounding took from it."""
    most = rows.abs().amax(1)
    good = (most >= TINY) & most.isfinite()
    exact = torch.where(good[:, None], rows * (127 / most)[:, None], 0)
    near = exact.round()
    scale = torch.where(good, most / 127, torch.where(most < TINY, 0, torch.nan))
    rest = torch.where(most < TINY, most * rows.shape[1] ** 0.5, 0)
    norm, lost = (torch.where(good, scale * a.norm(dim=1), b) for a, b in ((exact, 0), (exact - near, rest)))
    return near.to(torch.int8), near.sum(1).int(), scale, norm, lost


def panels(code: Tensor) -> Tensor:
    """Codes of latents as `coarse_dense` reads them."""
    return code


def coarse_dense(of: "Coarse", tokens: slice) -> Tensor:
    """[chunk, d_sae] numbers in bf16."""
    return _coarse(of, tokens).bfloat16()


def _coarse(of: "Coarse", tokens: slice) -> Tensor:
    x, W, reach, blur = of.x, of.W, of.reach[tokens, None], of.blur[tokens, None]
    products = (x.code[tokens].double() @ of.panels.double().T).float()  # exact
    exact = products * (x.scale[tokens, None] * W.scale)
    return exact + (of.bias + (reach * W.norm + blur * W.lost))


def coarse_largest(
    of: "Coarse", tokens: slice, k: int, index: Tensor, kept: Tensor, boost: "Coarse | None" = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`largest` of coarse numbers, times 1 + |boost| if there is one; `kept` takes those of the latents `index`, in
    bf16."""
    score = _coarse(of, tokens)
    kept.copy_(score[:, index])
    return largest(score if boost is None else score * (1 + _coarse(boost, tokens).abs()), k)


def coarse_above(of: "Coarse", tokens: slice, floor: Tensor, index: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """`above` of coarse numbers; `kept` takes those of the latents `index`, in bf16."""
    score = _coarse(of, tokens)
    kept.copy_(score[:, index])
    return above(score, floor)


def above(score: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of each token's scores over their latent's floor, how many, and the scores (bf16 as float32)."""
    score = score.to(floor.dtype)
    mask = ~(score <= floor)
    return mask.nonzero()[:, 1].int(), mask.sum(1), score[mask]


def nth_largest(score: Tensor, n: int) -> Tensor:
    """The n-th largest of all positive scores, n at least 1; 0 where there are fewer."""
    score = score.reshape(-1).clamp(min=0)
    return score.sort(descending=True).values[n - 1] if n <= len(score) else score.new_zeros(())


def prune(start: Tensor, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    """Marks each group's `quota` largest positive scores; the second tensor is what a later one has to exceed."""
    group = _row(start)
    order = score.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]  # by group, then from large to small, then as they came
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start[group]
    keep = (rank < quota[group]) & ~(score <= 0)
    floor = score.new_zeros(len(quota))
    last = keep & (rank == quota[group] - 1)
    floor[group[last]] = score[last]
    return keep, floor.masked_fill_(quota == 0, torch.inf)


def reaches(start: Tensor, exact: Tensor, score: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group: by how much scores are off (root mean square), the least exact one kept, and the least score."""
    off = (totals(start, (exact - score).square()) / start.diff()).sqrt()
    least = torch.segment_reduce(exact.masked_fill(~keep, torch.inf), "min", offsets=start)
    return off, least, torch.segment_reduce(score, "min", offsets=start)


def compact(start: Tensor, latent: Tensor, value: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The latents that `keep` marks, how many each token has, and their values."""
    return latent[keep], _starts(keep)[start].diff(), value[keep]


@torch.no_grad()
def adam_rows(W, grad, m, v, *, scale, lr, betas, eps, step, unit) -> None:
    """One pass of Adam over the rows of W, in place; `unit`: gradient along each row removed, rows end at norm 1."""
    if unit:
        grad = grad - (grad * W).sum(1, keepdim=True) * W
    m.lerp_(scale * grad, 1 - betas[0])
    v.lerp_((scale * grad).square(), 1 - betas[1])
    W.sub_(lr / (1 - betas[0] ** step) * m / ((v / (1 - betas[1] ** step)).sqrt() + eps))
    if unit:
        W.div_(W.norm(dim=1, keepdim=True))


def _row(start: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(start) - 1, device=start.device), start.diff())


def _starts(count: Tensor) -> Tensor:
    return torch.cat([count.new_zeros(1, dtype=torch.long), count.cumsum(0)])
