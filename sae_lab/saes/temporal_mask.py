"""Adaptive temporal masking: latents that mattered little of late sit a step out, by chance."""

from dataclasses import dataclass

import numpy as np
import torch

from ..knobs import knob
from ..shapes import Acts, LatentMask, PerLatent, Rows
from ..sparse import Latents, dots, latent_totals
from .base import SAE, Batch, Objective, Recipe
from .losses import l1, mse


class TemporalMask(SAE, name="temporal_mask"):
    """Moving averages of each latent's magnitude, frequency and contribution give its importance; below the threshold
    theta = mean + c * std over latents, it is masked with probability 1 - exp(-r (theta - importance) / theta).

    Interpretation, since we know the paper from summaries: importance is the weighted sum of the three averages, each
    divided by its mean over latents; the memory, c, r, the largest probability and the warm-up; one draw per latent and
    step, for the whole batch; a latent that sits out is not observed, so its averages stay; inference without a mask;
    and all that is left where nobody is masked, which is ReLU with L1 (Conerly et al.) here.
    """

    paper = "Li & Ren 2025, arXiv:2510.08855 (interpretation)"
    recipe = Recipe(lr=5e-5, warmup=0.0, sparsity_warmup=0.05, unit_norm=False, scaling="sqrt_d")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        l1_weight: float = knob(5.0, 0.0, 1e4, "price of one unit of latent activation times decoder norm")
        init_norm: float = knob(0.1, 1e-3, 10.0, "norm of the decoder rows at the start; the encoder's are the same")
        momentum: float = knob(0.99, 0.0, 0.99999, "memory of the moving averages, per step")
        by_magnitude: float = knob(1 / 3, 0.0, 1.0, "share of importance that magnitude, when active, has")
        by_frequency: float = knob(1 / 3, 0.0, 1.0, "share of importance that the frequency of firing has")
        by_contribution: float = knob(1 / 3, 0.0, 1.0, "share of importance that the rise of the MSE without it has")
        c: float = knob(0.0, -10.0, 10.0, "standard deviations by which the threshold lies over the mean importance")
        r: float = knob(1.0, 0.0, 100.0, "how steeply the chance of a mask grows below the threshold; 0: never masked")
        mask_limit: float = knob(0.95, 0.0, 1.0, "largest chance of a mask")
        mask_warmup: float = knob(0.05, 0.0, 1.0, "share of the run at its start in which nobody is masked")
        inference: str = knob(
            "all", choices=("all", "important"), help="latents at inference: all, or those over theta"
        )
        centred: bool = knob(False, help="whether b_dec is subtracted before the encoder")

    @torch.no_grad()
    def build(self) -> None:
        self.W_dec *= self.cfg.init_norm
        self.W_enc *= self.cfg.init_norm
        d_sae = self.cfg.d_sae
        self.register_buffer("averages", torch.zeros(3, d_sae))  # per token: activation, firings, rise of the MSE
        self.register_buffer("seen", torch.zeros(d_sae))  # weight of all observations: 1 - momentum^n after n
        self.register_buffer("masked", torch.zeros(d_sae, dtype=torch.bool))  # who sits the next step out
        self.register_buffer("steps", torch.tensor(0))

    @property
    def fires(self) -> str | None:
        """As ReLU, unless latents are left out by their importance."""
        return "positive" if self.cfg.inference == "all" else None

    def encode(self, x: Acts) -> Latents:
        out = torch.zeros_like(self.masked)
        if self.cfg.inference == "important":
            importance = self.importance()
            out = importance < self._theta(importance)
        return self._without(out, x)

    def objective(self, batch: Batch) -> Objective:
        masked = self.masked if batch.progress >= self.cfg.mask_warmup else torch.zeros_like(self.masked)
        z = self._without(masked, batch.x)
        x_hat = self.reconstruct(z, batch.x)
        self._observe(z, batch.target - x_hat, masked)
        with torch.no_grad():  # a mask lowers L0 in training alone: the target is for inference
            unmasked = z if self.cfg.target_l0 is None else self.encode(batch.x)
        penalty = self.cfg.l1_weight * l1(z, z.at(self.W_dec.norm(dim=1)))
        return Objective(x_hat, z, {"mse": mse(x_hat, batch.target), "l1": self.charge(penalty, unmasked, batch)})

    @torch.no_grad()
    def after_step(self) -> None:
        """Draws who sits the next step out, a function of (seed, step)."""
        self.steps += 1
        state = np.random.SeedSequence((self.cfg.seed, int(self.steps))).generate_state(1)
        draw = torch.rand(self.cfg.d_sae, generator=torch.Generator().manual_seed(int(state[0])))
        self.masked.copy_(draw.to(self.masked.device) < self.mask_probability())

    @torch.no_grad()
    def importance(self) -> PerLatent:
        """What a latent mattered of late, 1 on average over latents that were all observed."""
        activation, firings, rise = self.averages
        parts = activation / firings.clamp(min=1e-12), firings / self._weight, rise.relu() / self._weight
        shares = self.cfg.by_magnitude, self.cfg.by_frequency, self.cfg.by_contribution
        return sum(share * part / part.mean().clamp(min=1e-12) for share, part in zip(shares, parts))

    @torch.no_grad()
    def mask_probability(self) -> PerLatent:
        """The chance of each latent to sit the next step out."""
        importance = self.importance()
        theta = self._theta(importance)
        below = (theta - importance).relu() / theta.clamp(min=1e-12)
        return (1 - torch.exp(-self.cfg.r * below)).clamp(max=self.cfg.mask_limit)

    @property
    def _weight(self) -> PerLatent:
        return self.seen.clamp(min=1e-12)

    def _theta(self, importance: PerLatent) -> torch.Tensor:
        return importance.mean() + self.cfg.c * importance.std(correction=0)

    def _without(self, masked: LatentMask, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(torch.where(masked, torch.inf, 0.0))).relu()

    @torch.no_grad()
    def _observe(self, z: Latents, missed: Rows, masked: LatentMask) -> None:
        """Moves the averages of those who take part."""
        f, s = z.value.detach(), z.support
        rise = 2 * f * dots(s, missed, self.W_dec) + f**2 * z.at(self.W_dec.square().sum(1))
        now = torch.stack([latent_totals(s, v) for v in (f, (f > 0).to(f), rise)]) / max(1, s.tok)
        rate = (1 - self.cfg.momentum) * (~masked).to(now)
        self.averages.lerp_(now, rate)
        self.seen.lerp_(torch.ones_like(self.seen), rate)
