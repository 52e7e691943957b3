"""Feature Choice: each latent chooses its tokens, as many as a Zipf law gives it; so none can be dead."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import torch

from ..knobs import knob
from ..shapes import Acts, LatentInts, Part, PerLatent, Rows
from ..sparse import Latents, batch_topk, column_topk
from .base import SAE, Batch, Objective, Recipe
from .losses import energy, geometric_median, power, shortfall_error
from .select import apportion, draw_lots, follow, latent_thresholds, zipf_density


class FeatureChoice(SAE, name="feature_choice"):
    """Latent i keeps its m_i tokens of largest activation, sum of m_i = k * tok. Quotas need known densities: a first
    phase is Mutual Choice, which keeps the k * tok largest whatever their latent.

    Interpretation. The paper says that quotas follow the Zipf law of densities, and that latents below it explain the
    residual (aux_zipf). Ours: density is a running mean; a latent's place in the law is its rank in density; the law's
    form and constants (`zipf`, `shift`; zipf=0 gives uniform quotas); rounding by largest remainders, at least 1, or by
    lot where k * tok < d_sae; when the first phase ends; aux_zipf's weights and scale (as in Mutual Choice); thresholds
    at inference, one per latent, set at the end so that densities follow the law and mean L0 is k (during training
    moving averages stand in for them); the recipe is TopK's. A latent keeps fewer tokens than its quota where fewer are
    positive, so L0 in training may fall below k.
    """

    paper = "Ayonrinde 2024, arXiv:2411.02124 (interpretation)"
    fires = "threshold"
    recipe = Recipe(lr=lambda d_sae: 2e-4 / sqrt(d_sae / 2**14), eps=6.25e-10)
    alone = True
    in_units = (*SAE.in_units, "threshold")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token, on average over the batch")
        mutual_share: float = knob(0.8, 0.0, 1.0, "share of the run, at its start, that is Mutual Choice")
        zipf: float = knob(1.0, 0.0, 4.0, "exponent of the law of densities, 1 / (rank + shift)^zipf; 0: all alike")
        shift: float = knob(2.7, 0.0, 1e6, "how much the law's head is flattened, in ranks")
        k_aux: int | None = knob(None, 1, 8192, "under-used latents that explain the residual; by default d_in / 2")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the aux_zipf term")
        momentum: float = knob(0.99, 0.0, 0.9999, "memory per step of the densities and of the stand-in thresholds")

    def build(self) -> None:
        alike = torch.full((self.cfg.d_sae,), self.cfg.k / self.cfg.d_sae)
        self.register_buffer("threshold", torch.zeros(self.cfg.d_sae))
        self.register_buffer("density", alike)  # running share of tokens that each latent fires on
        self.register_buffer("latest", alike.clone())  # that of the last batch
        self.register_buffer("steps", torch.tensor(0))

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(geometric_median(target))

    def law(self) -> PerLatent:
        """The density that each latent should have."""
        return zipf_density(self.density, self.cfg.k, self.cfg.zipf, self.cfg.shift)

    def quotas(self, tok: int) -> LatentInts:
        """How many of `tok` tokens each latent may choose."""
        share, total = tok * self.law(), self.cfg.k * tok
        return apportion(share, total, least=1) if total >= self.cfg.d_sae else draw_lots(share)

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(self.threshold)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre, tok = self.pre(batch.x), len(batch.x)
        mutual = batch.progress < self.cfg.mutual_share
        rule, amount = (batch_topk, self.cfg.k * tok) if mutual else (column_topk, self.quotas(tok))
        z = pre.keep(pre.choose(rule, amount)).relu()
        follow(self.threshold, z, self.cfg.momentum)
        self.latest.copy_(z.support.T.start.diff() / tok)
        x_hat = self.reconstruct(z, batch.x)
        missed = batch.target - x_hat
        short = (1 - self.density / self.law()).relu()
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
        self.threshold.copy_(latent_thresholds((self.pre(x) for x in chunks), self.law(), self.cfg.k))
