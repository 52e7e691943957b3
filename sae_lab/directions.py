"""Directions among directions: exact neighbours by cosine, what chance would give, how many dimensions they span.

A dictionary is any [latents, d_in] tensor whose rows are directions; their lengths do not matter, and a row of zeros is
like nothing.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import betainc, betaincc, betainccinv
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 2048  # of cosines that are there at a time

Dictionary = Float[Tensor, "_ _"]


class Neighbours(NamedTuple):
    """For each row its nearest rows of another dictionary, nearest first."""

    index: Int[np.ndarray, "rows k"]
    cosine: Float[np.ndarray, "rows k"]


class Dimension(NamedTuple):
    """How many dimensions unit directions span, by the eigenvalues p (shares of their sum) of their second moments.

    Attributes:
        participation: 1 / sum of p^2.
        entropy: exp of the entropy of p.
        chance: the participation of as many random directions.
    """

    participation: float
    entropy: float
    chance: float


def unit(W: Dictionary) -> Dictionary:
    """Rows at length 1, in float32.

    Raises:
        ValueError: for numbers that are not finite.
    """
    if not W.isfinite().all():
        raise ValueError("A dictionary has numbers that are not finite: look at the training.")
    return normalize(W.detach().float(), dim=1, eps=torch.finfo(torch.float32).tiny)


def nearest(rows: Dictionary, among: Dictionary, k: int = 1, themselves: bool = False) -> Neighbours:
    """The k rows of `among` with the largest cosine, exactly; `themselves`: both are one dictionary, and no row is its
    own neighbour.

    Raises:
        ValueError: for another d_in, or fewer than k rows to be near to.
    """
    if rows.shape[1] != among.shape[1]:
        raise ValueError(f"Rows of {rows.shape[1]} and of {among.shape[1]} numbers: only one d_in compares.")
    if not 1 <= k <= len(among) - themselves:
        raise ValueError(f"k={k} neighbours among {len(among) - themselves} directions: ask for fewer.")
    rows, among, found = unit(rows), unit(among).to(rows.device), []
    for first in range(0, len(rows), ROWS):
        cosine = rows[first : first + ROWS] @ among.T
        if themselves:
            cosine.diagonal(first).fill_(-2)
        found.append(cosine.topk(k))
    cosine, index = (torch.cat(part).cpu().numpy() for part in zip(*found))
    return Neighbours(index, cosine.clip(-1, 1))


def chance_cosine(d_in: int, n: int = 1, q: float = 0.5) -> float:
    """The q-quantile of the largest cosine that n random directions have with one more.

    (1 + cosine) / 2 of two random directions is Beta((d_in - 1) / 2, (d_in - 1) / 2).
    """
    half = (d_in - 1) / 2
    return float(2 * betainccinv(half, half, -np.expm1(np.log(q) / n)) - 1)


def chance_below(cosine: Float[np.ndarray, " _"], d_in: int, n: int) -> Float[np.ndarray, " _"]:
    """How probable it is that n random directions all have a smaller cosine with one more."""
    half = (d_in - 1) / 2
    middle = (1 + np.asarray(cosine, float)) / 2
    tail = betaincc(half, half, middle.clip(0, 1))
    return np.where(tail < 0.5, np.exp(n * np.log1p(-tail.clip(0, 0.5))), betainc(half, half, middle.clip(0, 1)) ** n)


def dimension(W: Dictionary) -> Dimension:
    """How many dimensions the directions span, not centred; rows of zeros are left out."""
    rows = unit(W).double()
    rows = rows[rows.norm(dim=1) > 0.5]
    share = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0) / len(rows)
    entropy = -torch.special.xlogy(share, share).sum()
    n, d_in = rows.shape
    return Dimension(1 / share.square().sum().item(), entropy.exp().item(), n * d_in / (n + d_in - 1))


def trustworthiness(W: Dictionary, near: Int[np.ndarray, "rows k"]) -> float:
    """How far `near`, each row's neighbours in a picture, are its neighbours by cosine: 1 where they are, 0.5 by chance
    (Venna & Kaski 2001, as in scikit-learn)."""
    rows, (n, k), penalty = unit(W), near.shape, 0
    for first in range(0, n, ROWS):
        cosine = rows[first : first + ROWS] @ rows.T
        cosine.diagonal(first).fill_(-2)
        theirs = cosine.gather(1, torch.from_numpy(near[first : first + ROWS]).long().to(rows.device))
        rank = n + 1 - torch.searchsorted(cosine.sort(1).values, theirs.contiguous(), right=True)
        penalty += int((rank - k).clamp(min=0).sum())
    return 1 - 2 * penalty / (n * k * (2 * n - 3 * k - 1))
