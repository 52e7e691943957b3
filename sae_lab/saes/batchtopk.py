"""BatchTopK: keep the k * tok largest pre-activations of the batch; one threshold at inference."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts, Part
from ..sparse import Latents, batch_topk
from .base import SAE, Batch, Objective, Recipe
from .losses import dead_error, energy, mse
from .select import annealed, batch_threshold, follow


class BatchTopK(SAE, name="batchtopk"):
    """The authors' code has no encoder bias, as here, and lets AuxK's gradient reach live latents through the residual,
    which here is a constant, as in TopK's paper. The threshold is not a moving average of the batches' least: it is set
    at the end so that mean L0 is k (during training a moving average stands in for it).
    """

    paper = "Bussmann et al. 2024, arXiv:2412.06410"
    fires = "threshold"
    in_slices = True
    recipe = Recipe(lr=3e-4, betas=(0.9, 0.99))
    alone = True
    in_units = (*SAE.in_units, "threshold")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token, on average over the batch")
        encoder_bias: bool = knob(False, help="whether latents have a bias of their own; without, b_enc does not exist")
        k_aux: int = knob(512, 1, 8192, "dead latents that explain the residual")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the AuxK term")
        k_init: int | None = knob(None, 1, 2**20, "latents kept per token at the first step; None: k from the start")
        k_anneal: float = knob(0.1, 0.0, 1.0, "share of the run over which k_init falls to k")
        multi: float = knob(
            0.0, 0.0, 10.0, "weight of the error with 4k latents (Multi-TopK, whose paper has 1/8); 0: none"
        )
        momentum: float = knob(0.9, 0.0, 0.9999, "memory of the threshold that stands in until the end of training")

    def build(self) -> None:
        self.register_buffer("threshold", torch.tensor(0.0))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(self.threshold)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x, again=batch.dead)
        k = min(annealed(self.cfg.k_init or 0, self.cfg.k, self.cfg.k_anneal, batch.progress), self.cfg.d_sae)
        z = pre.keep(pre.choose(batch_topk, k * len(batch.x))).relu()
        follow(self.threshold, z, self.cfg.momentum)
        x_hat = self.reconstruct(z, batch.x)
        missed = batch.target - x_hat
        aux = self.cfg.aux_weight * dead_error(pre, self.W_dec, missed, batch.dead, self.cfg.k_aux)
        terms = {"mse": energy(missed), "auxk": aux}
        if self.cfg.multi:
            more = pre.keep(pre.choose(batch_topk, min(4 * k, self.cfg.d_sae) * len(batch.x))).relu()
            terms["multi"] = self.cfg.multi * mse(self.reconstruct(more, batch.x), batch.target)
        return Objective(x_hat, z, terms)

    @torch.no_grad()
    def calibrate(self, chunks: Iterable[Part]) -> None:
        self.threshold.fill_(batch_threshold((self.pre(x) for x in chunks), self.cfg.k))
