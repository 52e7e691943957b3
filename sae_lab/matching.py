"""Which latents of two dictionaries are the same: one-to-one matching by cosine (Hungarian), and what chance gives.

A dictionary is any [latents, d_in] tensor whose rows are directions; their lengths do not matter, and a row of zeros is
like nothing. Matching is exact, and says how far from the best it can be at most: half a minute at 16,384 latents.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betainc
from torch import Tensor

from .shapes import LatentMask, Places, Values, Weights
from .sparse.assignment import assign

WIDEST = 32_768  # latents that are matched at most: their cosines take 4.3 GB
DRAWN = 2048  # latents up to which chance is drawn; beyond, it is drawn up to there and goes on as it grew
ROWS = 1024  # of cosines that are looked at at a time, where not all are needed at once

Dictionary = Float[Tensor, "_ _"]


@runtime_checkable
class Directions(Protocol):
    """What `shared` compares; every SAE has them."""

    W_enc: Weights
    W_dec: Weights


class Pairs(NamedTuple):
    """Latent a[i] is matched with latent b[i], at this cosine. `a` ascends, and each latent occurs once at most.

    The cosine of some pairs is a mean over them: of the frequent, `(density[a] * cosine).sum() / density[a].sum()`.

    Attributes:
        slack: no other matching has a mean cosine that is higher by more than this: the sum of the columns' prices and
            of each row's best cosine over a price is more than any matching reaches (linear programming duality). 0 but
            for rounding where it was solved; NaN where each latent was given its `nearest`.
    """

    a: Places
    b: Places
    cosine: Values
    slack: float = math.nan

    @property
    def swapped(self) -> "Pairs":
        """The same pairs, seen from b."""
        order = self.b.argsort()
        return Pairs(self.b[order], self.a[order], self.cosine[order], self.slack)


class Consistency(NamedTuple):
    """How alike the dictionaries of several runs are.

    Attributes:
        mean: PW-MCC, the mean of `mcc` over all pairs of runs.
        std: its standard deviation over those pairs.
        pairs: how many there are.
        floor: what random dictionaries of the two smallest widths reach.
    """

    mean: float
    std: float
    pairs: int
    floor: float


def mcc(A: Dictionary, B: Dictionary, signed: bool = True) -> tuple[float, Pairs]:
    """Mean cosine of the best one-to-one matching, and the matching (Song et al., arXiv:2505.20254).

    Against the true dictionary of planted data it is GT-MCC. Where one has fewer rows, all of those are matched and the
    mean is over them. `signed=False` matches a direction with its opposite as well. Compare with `chance_floor`.

    Raises:
        ValueError: for dictionaries of another d_in, too wide to match, or with numbers that are not finite.
    """
    pairs = _match(A, B, signed)
    return pairs.cosine.mean().item(), pairs


def pw_mcc(dictionaries: Sequence[Dictionary], signed: bool = True) -> Consistency:
    """PW-MCC: `mcc` of every pair among the dictionaries of several runs.

    Raises:
        ValueError: for fewer than two, and as `mcc`.
    """
    if len(dictionaries) < 2:
        raise ValueError(f"pw_mcc() got {len(dictionaries)} dictionaries: it compares at least two.")
    scores = [mcc(A, B, signed)[0] for A, B in combinations(dictionaries, 2)]
    few, more = sorted(len(A) for A in dictionaries)[:2]
    floor = chance_floor(dictionaries[0].shape[1], few, signed, more)
    return Consistency(float(np.mean(scores)), float(np.std(scores)), len(scores), floor)


def mmcs(A: Dictionary, B: Dictionary, signed: bool = True) -> float:
    """Mean of each row's largest cosine with a row of the other, over the rows of A, then of B; the mean of the two.

    Several rows may have the same best one, so it is no less than `mcc` for equal widths. It has no limit on width.

    Raises:
        ValueError: for dictionaries of another d_in, or with numbers that are not finite.
    """
    return (nearest(A, B, signed).cosine.mean().item() + nearest(B, A, signed).cosine.mean().item()) / 2


def nearest(A: Dictionary, B: Dictionary, signed: bool = True) -> Pairs:
    """Each row of A with the row of B that is most like it, which several may have. It has no limit on width.

    Raises:
        ValueError: as `mmcs`.
    """
    best = [(c if signed else c.abs()).max(1) for c in (_cosines(rows, B) for rows in A.split(ROWS))]
    cosine, b = (torch.cat(parts).cpu() for parts in zip(*best))
    return Pairs(torch.arange(len(A)), b, cosine.double())


def shared(a: Directions, b: Directions, threshold: float = 0.7) -> LatentMask:
    """The latents of `a` that `b` has too: matched by encoder and by decoder rows with the same latent of b, both at a
    cosine of `threshold` or more (Paulo & Belrose, arXiv:2501.16615).

    Raises:
        ValueError: as `mcc`.
    """
    both = agreed(_match(a.W_enc, b.W_enc, True), _match(a.W_dec, b.W_dec, True), threshold)
    return torch.zeros(len(a.W_dec), dtype=torch.bool).index_fill(0, both.a, True)


def agreed(by_encoder: Pairs, by_decoder: Pairs, threshold: float = 0.7) -> Pairs:
    """The pairs that both matchings have, at a cosine of `threshold` or more in both; the cosine is the decoders'."""
    near = by_encoder.cosine >= threshold
    partner = dict(zip(by_encoder.a[near].tolist(), by_encoder.b[near].tolist()))
    there = [partner.get(a) == b for a, b in zip(by_decoder.a.tolist(), by_decoder.b.tolist())]
    kept = torch.tensor(there) & (by_decoder.cosine >= threshold)
    return Pairs(by_decoder.a[kept], by_decoder.b[kept], by_decoder.cosine[kept], by_decoder.slack)


@lru_cache
def chance_floor(d_in: int, d_sae: int, signed: bool = True, wider: int | None = None) -> float:
    """What `mcc` gives two random dictionaries of this shape: 0.45 at 16 x 32, 0.14 at 512 x 1,024.

    The same at every call; `wider` is the width of the other one where they differ. Beyond 2,048 latents it is
    extrapolated (off by 0.003 at 8,192): the share of a sphere that is nearer than some angle is a power of its sine,
    so log(1 - floor^2) falls in proportion to log(d_sae).
    """
    few, many = sorted((d_sae, wider or d_sae))
    if many <= DRAWN:
        return float(np.mean(list(_by_chance(d_in, few, many, signed, max(3, 4096 // many)))))
    drawn = [(max(1, round(few * most / many)), most) for most in (DRAWN // 2, DRAWN)]
    half, full = (math.log(max(1e-12, 1 - chance_floor(d_in, n, signed, m) ** 2)) for n, m in drawn)
    return math.sqrt(-math.expm1(full + (full - half) * math.log2(many / DRAWN)))


def chance_nearest(d_in: int, d_sae: int, signed: bool = True) -> float:
    """What `mmcs` gives two random dictionaries: the mean of the largest of d_sae cosines of random directions."""
    t = np.linspace(-1 if signed else 0, 1, 20_001)
    below = betainc((d_in - 1) / 2, (d_in - 1) / 2, (1 + t) / 2)
    return float(1 - np.trapezoid((below if signed else 2 * below - 1) ** d_sae, t))


@lru_cache
def chance_shared(d_in: int, d_sae: int, wider: int, threshold: float = 0.7) -> float:
    """The share of the narrower one's latents that chance makes `shared` at most: where encoders are the decoders.

    Of the first 2,048 latents where there are more.
    """
    few, many = sorted((min(d_sae, DRAWN), min(wider, DRAWN)))
    A, B = torch.randn(few + many, d_in, generator=torch.Generator().manual_seed(0)).split([few, many])
    return (mcc(A, B)[1].cosine >= threshold).double().mean().item()


def _by_chance(d_in: int, few: int, many: int, signed: bool, times: int) -> Iterator[float]:
    rng = torch.Generator().manual_seed(0)
    for _ in range(times):
        A, B = torch.randn(few + many, d_in, generator=rng).split([few, many])
        yield mcc(A, B, signed)[0]


def _match(A: Dictionary, B: Dictionary, signed: bool) -> Pairs:
    if not (len(A) and len(B)):
        raise ValueError(f"{len(A)} x {len(B)} latents: there is nothing to match.")
    if max(len(A), len(B)) > WIDEST:
        raise ValueError(
            f"{len(A):,} x {len(B):,} latents: at most {WIDEST:,} are matched. Use mmcs, or match fewer rows."
        )
    if len(A) > len(B):
        return _match(B, A, signed).swapped
    gain = _cosines(A, B).float().cpu()
    gain = gain if signed else gain.abs_()
    b, price = (torch.from_numpy(found) for found in assign(gain.numpy()))
    a = torch.arange(len(A))
    cosine = gain[a, b].double()
    bound = sum((rows - price).amax(1).sum().item() for rows in gain.split(ROWS)) + price.sum().item()
    return Pairs(a, b, cosine, max(0.0, bound - cosine.sum().item()) / len(a))


def _cosines(A: Dictionary, B: Dictionary) -> Dictionary:
    if A.shape[1] != B.shape[1]:
        raise ValueError(f"Rows of {A.shape[1]} and of {B.shape[1]} numbers: only directions of one d_in compare.")
    return _unit(A) @ _unit(B).to(A.device).T


def _unit(W: Dictionary) -> Dictionary:
    W = W.detach() if W.dtype == torch.float64 else W.detach().float()
    if not W.isfinite().all():
        raise ValueError("A dictionary has numbers that are not finite: look at the training.")
    return W / W.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
