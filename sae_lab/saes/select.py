"""Inference thresholds and quotas that variants share."""

from collections.abc import Iterable
from math import ceil

import torch

from ..shapes import LatentInts, PerLatent
from ..sparse import Latents, PreActs, batch_topk, column_topk, mesh


def annealed(first: int, k: int, share: float, progress: float) -> int:
    """How many latents to keep at a point of the run: falls in a line from `first` to `k` over its first `share`."""
    if first <= k or progress >= share:
        return k
    return ceil(first + (k - first) * progress / share - 1e-9)


def batch_threshold(pres: Iterable[PreActs], k: float | int) -> float:
    """The number that k pre-activations per token exceed, on average over all batches given.

    Only a batch's 4k per token largest are looked at, so a batch that would take more than four times its share counts
    as taking that.
    """
    values, tok = [], 0
    for pre in pres:
        values.append(pre.values(pre.choose(batch_topk, int(4 * k * pre.tok))))
        tok += pre.tok
    if not tok:
        raise ValueError("calibrate() got no activations: give it fresh training rows.")
    found = torch.cat(values) if (m := mesh()) is None else m.joined(torch.cat(values), "latents")
    value, n = found.relu().sort(descending=True).values, round(k * tok)
    if n >= len(value):
        return 0.0
    return ((value[n - 1] + value[n]) / 2).item()


def latent_thresholds(pres: Iterable[PreActs], density: PerLatent, k: float | int) -> PerLatent:
    """The number above which each latent fires as often as `density` says, over all batches given; k per token in all.

    A latent that is positive less often than it should fire leaves the rest to the others, in proportion. Only a
    batch's four times as many largest of a latent are looked at.
    """
    latents, values, tok = [], [], 0
    for pre in pres:
        support = pre.choose(column_topk, (4 * pre.tok * density).ceil().long())
        latents.append(support.latent.long())
        values.append(pre.values(support))
        tok += pre.tok
    if not tok:
        raise ValueError("calibrate() got no activations: give it fresh training rows.")
    latent, value = torch.cat(latents), torch.cat(values)
    order = value.argsort(descending=True)
    order = order[latent[order].argsort(stable=True)]  # by latent, then from large to small
    value, count = torch.cat([value[order], value.new_zeros(1)]), latent.bincount(minlength=len(density))
    quota = apportion(share_out(tok * density, count, k * tok), min(round(k * tok), len(order)))

    def at(place: LatentInts) -> PerLatent:
        return torch.where(place < count, value[(count.cumsum(0) - count + place).clamp(max=len(order))], 0)

    return (at((quota - 1).clamp(min=0)) + at(quota)) / 2


def zipf_density(density: PerLatent, k: float | int, exponent: float, shift: float) -> PerLatent:
    """How often the latent of each rank in `density` should fire: as 1 / (rank + shift)^exponent, k per token in all.

    Rank 1 is the densest, ties go to the lower latent. None should fire more often than on every token: what the law
    gives beyond goes to the others. Exponent 0: all alike.
    """
    rank = torch.empty_like(density, dtype=torch.double)
    ranks = torch.arange(1, len(rank) + 1, dtype=rank.dtype, device=rank.device)
    rank[density.argsort(descending=True, stable=True)] = ranks
    return share_out((rank + shift) ** -exponent, torch.ones_like(rank), k).to(density.dtype)


def share_out(weight: PerLatent, most: PerLatent | LatentInts, total: float | int) -> PerLatent:
    """`total` shared in proportion to `weight`, except that nobody gets more than `most`; in float64."""
    weight, most = weight.double(), most.double()
    full, order = (most / weight).sort()  # the price per weight at which each has its fill
    taken = most[order].cumsum(0) - most[order]
    left = weight[order].flip(0).cumsum(0).flip(0)
    price = (total - taken) / left  # if those before, and nobody after, have their fill
    fair = price <= full
    price = torch.where(fair.any(), price.masked_fill(~fair, -torch.inf).max(), torch.inf)
    return torch.minimum(price * weight, most)


def apportion(share: PerLatent, total: int, least: int = 0) -> LatentInts:
    """Whole numbers of at least `least` that sum to `total`, in proportion to what `share` has above that: by largest
    remainders, ties to the lower latent.
    """
    rest = total - least * len(share)
    share = (share.double() - least).clamp(min=0)
    share = share * (rest / share.sum().clamp(min=1e-300))
    whole = (share + 1e-9).floor()  # what is whole but for rounding stays so
    order = (share - whole).argsort(descending=True, stable=True)
    whole[order] += torch.arange(len(order), device=order.device) < rest - whole.sum()
    return whole.long() + least


def draw_lots(share: PerLatent) -> LatentInts:
    """Whole numbers next to `share`, above or below by chance so that their mean is `share`; they sum as it does."""
    ends = (share.double().cumsum(0) + torch.rand((), dtype=torch.double, device=share.device)).floor()
    return ends.diff(prepend=ends.new_zeros(1)).long()


def follow(threshold: torch.Tensor, z: Latents, momentum: float) -> None:
    """Moves a threshold, one number or one per latent, in place towards the least value that was kept."""
    value, least = z.value.detach(), torch.full_like(threshold, torch.inf)
    if threshold.dim():
        least.scatter_reduce_(0, z.support.latent.long(), value, "amin")
    elif len(value):
        least = value.min()
    if (m := mesh()) is not None and not threshold.dim():
        least = m.reduced(least.clone(), "all", torch.distributed.ReduceOp.MIN)
    moved = torch.where(threshold == 0, least, threshold.lerp(least, 1 - momentum))
    threshold.copy_(torch.where(least < torch.inf, moved, threshold))
