"""TopK: keep the k largest pre-activations of each token; dead latents learn from what the live ones missed."""

from dataclasses import dataclass
from math import sqrt

import torch

from ..knobs import knob
from ..shapes import Acts, Rows
from ..sparse import Latents, topk
from .base import SAE, Batch, Objective, Recipe
from .losses import dead_error, energy, geometric_median, mse, power
from .select import annealed


class TopK(SAE, name="topk"):
    """Eq. 3 and appendix A.2 with c = 1: activations are scaled to unit mean square instead of the loss.

    The learning rate's law in d_sae is that of later ports; the paper's batch is 131,072 tokens.
    """

    paper = "Gao et al. 2024, arXiv:2406.04093"
    fires = "topk"
    in_slices = True
    recipe = Recipe(lr=lambda d_sae: 2e-4 / sqrt(d_sae / 2**14), eps=6.25e-10)

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token")
        k_aux: int | None = knob(None, 1, 8192, "dead latents that explain the residual; by default d_in / 2")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the AuxK term")
        k_init: int | None = knob(None, 1, 2**20, "latents kept per token at the first step; None: k from the start")
        k_anneal: float = knob(0.1, 0.0, 1.0, "share of the run over which k_init falls to k")
        multi: float = knob(
            0.0, 0.0, 10.0, "weight of the error with 4k latents (Multi-TopK, whose paper has 1/8); 0: none"
        )

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(geometric_median(target))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.choose(topk, self.cfg.k)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x, again=batch.dead)
        k = min(annealed(self.cfg.k_init or 0, self.cfg.k, self.cfg.k_anneal, batch.progress), self.cfg.d_sae)
        z = pre.keep(pre.choose(topk, k)).relu()
        x_hat = self.reconstruct(z, batch.x)
        missed = batch.target - x_hat
        aux = dead_error(pre, self.W_dec, missed, batch.dead, self.cfg.k_aux or max(1, self.cfg.d_in // 2))
        aux = self.cfg.aux_weight * aux / power(missed).clamp(min=1e-12)
        terms = {"mse": energy(missed), "auxk": aux}
        if self.cfg.multi:
            more = pre.keep(pre.choose(topk, min(4 * k, self.cfg.d_sae))).relu()
            terms["multi"] = self.cfg.multi * mse(self.reconstruct(more, batch.x), batch.target)
        return Objective(x_hat, z, terms)
