"""How good a reconstruction is and how sparse: functions of tensors, summed in float64.

`evaluation.py` streams the same over any amount of text, with an interval over documents.
"""

import torch
from torch import Tensor

from .shapes import Acts, PerLatent
from .sparse import Latents


def fvu(x_hat: Acts, target: Acts) -> float:
    """Fraction of variance unexplained: 0 is perfect, 1 is no better than the mean of these tokens."""
    x_hat, target = _rows(x_hat), _rows(target)
    return ((x_hat - target).square().sum() / (target - target.mean(0)).square().sum()).item()


def cosine(x_hat: Acts, target: Acts) -> float:
    """Cosine of reconstruction and target, mean over tokens; 0 where either is zero."""
    x_hat, target = _rows(x_hat), _rows(target)
    lengths = x_hat.norm(dim=1) * target.norm(dim=1)
    return ((x_hat * target).sum(1) / lengths.clamp(min=1e-300)).mean().item()


def density(z: Latents) -> PerLatent:
    """Share of tokens on which each latent fires."""
    fired = torch.bincount(z.support.latent[z.value != 0], minlength=z.support.d_sae)
    return fired.double() / max(1, z.support.tok)


def bias(x_hat: Acts, target: Acts) -> float:
    """Relative reconstruction bias E|x_hat|^2 / E[x_hat . x]: 1 is none, below 1 is shrinkage (arXiv:2404.16014)."""
    x_hat, target = _rows(x_hat), _rows(target)
    return (x_hat.square().sum() / (x_hat * target).sum()).item()


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).double().cpu()
