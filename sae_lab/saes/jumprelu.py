"""JumpReLU: each latent has a learned threshold, and the number of latents over theirs is what is penalised."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..knobs import knob
from ..shapes import Acts, PerLatent, Scalar
from ..sparse import Latents
from .base import SAE, Batch, Objective, Recipe
from .losses import mse, per_token, ramp

HELD = 0.04  # of log(L0 / target_l0), a step: what 1,000 steps have by the controller's integral
MOST = 2e-3  # of that, a step: several times what the optimiser does


class JumpReLU(SAE, name="jumprelu"):
    """f = v * H(v - theta) with v = relu(W_enc x + b_enc), and L0 as the penalty; theta = exp(log_threshold).

    Neither step has a slope, so theta learns by pseudo-derivatives with a rectangle kernel K of width `bandwidth`:
        d f / d theta = -theta / bandwidth * K((v - theta) / bandwidth)      d H(v - theta) / d theta = the same / theta
    which make a batch's gradient a kernel density estimate of the expected loss's. The penalty moves thresholds alone.

    Interpretation: a threshold is held at half the kernel's width at least, where inactive latents stay out of the
    window; warm-ups are shares of the run (the paper: 1,000 steps for the rate, by a cosine, 10,000 for the penalty).
    The optimiser moves log theta by lr a step at most, so with `target_l0` all of them also follow the controller:
    together by what its integral adds to the logarithm of the price, which dies away as L0 settles; in long runs, where
    that is little a step, near the target by more, so that L0 does not drift with the weights (`HELD`, `MOST`).
    """

    paper = "Rajamanoharan et al. 2024, arXiv:2407.14435"
    fires = "threshold"
    in_slices = True
    recipe = Recipe(lr=7e-5, betas=(0.0, 0.999), warmup=0.01, decay=0.0, sparsity_warmup=0.1, clip=0.0)
    alone = True
    in_log_units = ("log_threshold",)

    @dataclass(frozen=True)
    class Config(SAE.Config):
        l0_weight: float = knob(1e-3, 0.0, 1e4, "price of one active latent")
        target_weight: float | None = knob(
            None, 0.0, 1e4, "weight of (L0 / target_l0 - 1)^2 in place of the price; None: the price is moved instead"
        )
        bandwidth: float = knob(1e-3, 1e-9, 10.0, "width of the kernel around a threshold, in units of activation")
        init_threshold: float = knob(1e-3, 1e-9, 10.0, "every threshold at the start")
        centred: bool = knob(False, help="whether b_dec is subtracted before the encoder")

        def __post_init__(self):
            super().__post_init__()
            if self.init_threshold < self.bandwidth / 2:
                raise ValueError(
                    f"init_threshold={self.init_threshold} must be at least bandwidth / 2 = {self.bandwidth / 2}: "
                    "below, inactive latents are inside the kernel. Raise it, or lower bandwidth."
                )
            if self.target_weight is not None and self.target_l0 is None:
                raise ValueError(f"target_weight={self.target_weight} weighs a distance from target_l0: give that too.")

    def build(self) -> None:
        start = math.log(self.cfg.init_threshold)
        # float64, so that a threshold of float32 comes out of its logarithm as it went in
        self.log_threshold = nn.Parameter(torch.full((self.cfg.d_sae,), start, dtype=torch.float64))
        if self.cfg.target_weight is not None:
            self.control = None  # the penalty itself aims at the target

    def _apply(self, fn: Any, recurse: bool = True) -> "JumpReLU":
        """Whatever the weights are turned into, the logarithms stay float64: rounded, they would move thresholds."""
        before = self.log_threshold.detach()
        super()._apply(fn, recurse)
        if self.log_threshold.dtype != before.dtype and not self.log_threshold.is_meta:
            self.log_threshold.data = before.to(self.log_threshold.device)
        return self

    @property
    def threshold(self) -> PerLatent:
        """theta, in the precision of the weights."""
        return self.log_threshold.exp().to(self.W_enc.dtype)

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(self.threshold.detach()))

    def objective(self, batch: Batch) -> Objective:
        cfg, pre, theta = self.cfg, self.pre(batch.x), self.threshold
        v = pre.keep(pre.over((theta.detach() - cfg.bandwidth / 2).clamp(min=0)))  # active, or below but in the window
        at = v.at(theta)
        over = _Step.apply(v.value, at, cfg.bandwidth)
        z = v.to(v.value * over.detach() + at.detach() * (over - over.detach()))
        x_hat = self.reconstruct(z, batch.x)
        l0 = per_token(over, len(batch.x))
        if cfg.target_weight is None:
            penalty = self.charge(cfg.l0_weight * l0, z, batch)
        else:
            distance = (l0 / cfg.target_l0 - 1).square()
            penalty = cfg.target_weight * ramp(batch.progress, self.recipe.sparsity_warmup) * distance
        return Objective(x_hat, z, {"mse": mse(x_hat, batch.target), "l0": penalty})

    @torch.no_grad()
    def after_step(self) -> None:
        if self.control is not None:
            self.log_threshold += self._shift()
        self.log_threshold.clamp_(min=math.log(self.cfg.bandwidth / 2))

    def _shift(self) -> Scalar:
        """What is added to the logarithms of all thresholds."""
        lasting = self.control.lasting
        held = (HELD * self.control.error).clamp(-MOST, MOST) * (lasting != 0)  # the controller may be waiting
        return torch.where(lasting.abs() < held.abs(), held, lasting)


class _Step(torch.autograd.Function):
    """H(v - theta) at the nonzeros: 1 or 0. By a rectangle kernel it has a slope in theta; in v it has none."""

    @staticmethod
    def forward(ctx, v, theta, bandwidth):
        ctx.save_for_backward(v, theta)
        ctx.bandwidth = bandwidth
        return (v > theta).to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        v, theta = ctx.saved_tensors
        near = (v - theta).abs() < ctx.bandwidth / 2
        return None, -grad * near / ctx.bandwidth, None
