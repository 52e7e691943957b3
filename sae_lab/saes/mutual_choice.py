"""Mutual Choice: the k * tok best matches of tokens and latents; latents below the Zipf law of densities are helped."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import torch

from ..knobs import knob
from ..shapes import Acts, Part, Rows
from ..sparse import Latents, batch_topk
from .base import SAE, Batch, Objective, Recipe
from .losses import energy, geometric_median, power, shortfall_error
from .select import batch_threshold, follow, zipf_density


class MutualChoice(SAE, name="mutual_choice"):
    """Which matches of tokens and latents to keep is one problem with the budget k * tok, solved by magnitude: the
    choice is BatchTopK's. New is aux_zipf, AuxK for latents that are dying rather than dead.

    Interpretation. The paper says that densities follow a Zipf law and that latents below it explain the residual.
    Ours: density is a running mean; a latent's place in the law is its rank in density; the law's form and constants
    (`zipf`, `shift`); a latent counts by the share (law - density) / law that it lacks; the weight, and the division
    by the residual's variance, are AuxK's; the threshold at inference, set at the end so that mean L0 is k (during
    training a moving average stands in for it); the recipe is TopK's.
    """

    paper = "Ayonrinde 2024, arXiv:2411.02124 (interpretation)"
    fires = "threshold"
    recipe = Recipe(lr=lambda d_sae: 2e-4 / sqrt(d_sae / 2**14), eps=6.25e-10)
    alone = True
    in_units = (*SAE.in_units, "threshold")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token, on average over the batch")
        zipf: float = knob(1.0, 0.0, 4.0, "exponent of the law of densities, 1 / (rank + shift)^zipf; 0: all alike")
        shift: float = knob(2.7, 0.0, 1e6, "how much the law's head is flattened, in ranks")
        k_aux: int | None = knob(None, 1, 8192, "under-used latents that explain the residual; by default d_in / 2")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the aux_zipf term")
        momentum: float = knob(0.99, 0.0, 0.9999, "memory per step of the densities and of the stand-in threshold")

    def build(self) -> None:
        alike = torch.full((self.cfg.d_sae,), self.cfg.k / self.cfg.d_sae)
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("density", alike)  # running share of tokens that each latent fires on
        self.register_buffer("latest", alike.clone())  # that of the last batch
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(geometric_median(target))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(self.threshold)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x)
        z = pre.keep(pre.choose(batch_topk, self.cfg.k * len(batch.x))).relu()
        follow(self.threshold, z, self.cfg.momentum)
        self.latest.copy_(z.support.T.start.diff() / len(batch.x))
        x_hat = self.reconstruct(z, batch.x)
        missed = batch.target - x_hat
        law = zipf_density(self.density, self.cfg.k, self.cfg.zipf, self.cfg.shift)
        short = (1 - self.density / law).relu()
        aux = shortfall_error(pre, self.W_dec, missed, short, self.cfg.k_aux or max(1, self.cfg.d_in // 2))
        aux = self.cfg.aux_weight * aux / power(missed).clamp(min=1e-12)
        return Objective(x_hat, z, {"mse": energy(missed), "aux_zipf": aux})

    @torch.no_grad()
    def after_step(self) -> None:
        """The mean of the batches so far while they are few, then a moving average."""
        self.steps += 1
        self.density.lerp_(self.latest, (1 / self.steps).clamp(min=1 - self.cfg.momentum).to(self.density.dtype))

    @torch.no_grad()
    def calibrate(self, chunks: Iterable[Part]) -> None:
        self.threshold.fill_(batch_threshold((self.pre(x) for x in chunks), self.cfg.k))
