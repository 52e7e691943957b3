"""Which latents of two dictionaries are the same: one-to-one matching by cosine (Hungarian), and what chance gives.

A dictionary is any [latents, d_in] tensor whose rows are directions; their lengths do not matter, and a row of zeros is
like nothing. Matching takes time in proportion to latents^3: seconds at 4,096, minutes at 16,384.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .shapes import LatentMask, Places, Values, Weights

WIDEST = 32_768  # latents that are matched at most: their cosines take 8 GB in float64
DRAWN = 2048  # latents up to which chance is drawn; beyond, it is drawn up to there and goes on as it grew
ROWS = 4096  # of cosines that `mmcs` has at a time

Dictionary = Float[Tensor, "_ _"]


@runtime_checkable
class Directions(Protocol):
    """What `shared` compares; every SAE has them."""

    W_enc: Weights
    W_dec: Weights


class Pairs(NamedTuple):
    """Latent a[i] is matched with latent b[i], at this cosine. `a` ascends, and each latent occurs once at most.

    The cosine of some pairs is a mean over them: of the frequent, `(density[a] * cosine).sum() / density[a].sum()`.
    """

    a: Places
    b: Places
    cosine: Values


class Consistency(NamedTuple):
    """How alike the dictionaries of several runs are.

    Attributes:
        mean: PW-MCC, the mean of `mcc` over all pairs of runs.
        std: its standard deviation over those pairs.
        pairs: how many there are.
        floor: what random dictionaries of the smaller width reach.
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
    latents, d_in = min(tuple(A.shape) for A in dictionaries)
    return Consistency(float(np.mean(scores)), float(np.std(scores)), len(scores), chance_floor(d_in, latents, signed))


def mmcs(A: Dictionary, B: Dictionary, signed: bool = True) -> float:
    """Mean of each row's largest cosine with a row of the other, over the rows of A, then of B; the mean of the two.

    Several rows may have the same best one, so it is no less than `mcc` for equal widths. It has no limit on width.

    Raises:
        ValueError: for dictionaries of another d_in, or with numbers that are not finite.
    """
    return (_best(A, B, signed) + _best(B, A, signed)) / 2


def shared(a: Directions, b: Directions, threshold: float = 0.7) -> LatentMask:
    """The latents of `a` that `b` has too: matched by encoder and by decoder rows with the same latent of b, both at a
    cosine of `threshold` or more (Paulo & Belrose, arXiv:2501.16615).

    Raises:
        ValueError: as `mcc`.
    """
    by_encoder, by_decoder = _match(a.W_enc, b.W_enc, True), _match(a.W_dec, b.W_dec, True)
    partner = [torch.full((len(a.W_dec),), -1) for _ in range(2)]
    for of, pairs in zip(partner, (by_encoder, by_decoder)):
        near = pairs.cosine >= threshold
        of[pairs.a[near]] = pairs.b[near]
    return (partner[0] == partner[1]) & (partner[0] >= 0)


@lru_cache
def chance_floor(d_in: int, d_sae: int, signed: bool = True) -> float:
    """What `mcc` gives two random dictionaries of this shape: 0.45 at 16 x 32, 0.14 at 512 x 1,024.

    The same at every call. Beyond 2,048 latents it is extrapolated (off by 0.003 at 8,192): the share of a sphere that
    is nearer than some angle is a power of its sine, so log(1 - floor^2) falls in proportion to log(d_sae).
    """
    if d_sae <= DRAWN:
        return float(np.mean(list(_by_chance(d_in, d_sae, signed, max(3, 4096 // d_sae)))))
    half, full = (math.log(max(1e-12, 1 - chance_floor(d_in, n, signed) ** 2)) for n in (DRAWN // 2, DRAWN))
    return math.sqrt(-math.expm1(full + (full - half) * math.log2(d_sae / DRAWN)))


def _by_chance(d_in: int, d_sae: int, signed: bool, times: int) -> Iterator[float]:
    rng = torch.Generator().manual_seed(0)
    for _ in range(times):
        A, B = torch.randn(2, d_sae, d_in, generator=rng)
        yield mcc(A, B, signed)[0]


def _match(A: Dictionary, B: Dictionary, signed: bool) -> Pairs:
    if not (len(A) and len(B)):
        raise ValueError(f"{len(A)} x {len(B)} latents: there is nothing to match.")
    if max(len(A), len(B)) > WIDEST:
        raise ValueError(
            f"{len(A):,} x {len(B):,} latents: at most {WIDEST:,} are matched. Use mmcs, or match fewer rows."
        )
    cosine = _cosines(A, B)
    a, b = (torch.from_numpy(i) for i in linear_sum_assignment((cosine if signed else cosine.abs()).cpu(), True))
    found = cosine[a.to(cosine.device), b.to(cosine.device)].cpu().double()
    return Pairs(a, b, found if signed else found.abs())


def _best(A: Dictionary, B: Dictionary, signed: bool) -> float:
    best = [(c if signed else c.abs()).amax(1) for c in (_cosines(rows, B) for rows in A.split(ROWS))]
    return torch.cat(best).double().mean().item()


def _cosines(A: Dictionary, B: Dictionary) -> Dictionary:
    if A.shape[1] != B.shape[1]:
        raise ValueError(f"Rows of {A.shape[1]} and of {B.shape[1]} numbers: only directions of one d_in compare.")
    cosines = _unit(A) @ _unit(B).to(A.device).T
    if not cosines.isfinite().all():
        raise ValueError("A dictionary has numbers that are not finite: look at the training.")
    return cosines


def _unit(W: Dictionary) -> Dictionary:
    W = W.detach() if W.dtype == torch.float64 else W.detach().float()
    return W / W.norm(dim=1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
