"""The floor: a TopK SAE whose dictionary is random and stays so."""

from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts, Rows
from ..sparse import Latents, topk
from .base import SAE, Batch, Objective, Recipe
from .losses import mse


class Random(SAE, name="random"):
    """What random directions explain: a trained SAE has to beat it. Only b_dec is set, to the sample's mean."""

    paper = "a baseline; that random models pass for interpretable: Heap et al. 2025, arXiv:2501.17727"
    fires = "topk"
    recipe = Recipe(lr=0.0)
    trainable = False

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token")
        encoder_bias: bool = knob(False, help="whether latents have a bias of their own; without, b_enc does not exist")

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(target.mean(0))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.choose(topk, self.cfg.k)).relu()

    def objective(self, batch: Batch) -> Objective:
        z = self.encode(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        return Objective(x_hat, z, {"mse": mse(x_hat, batch.target)})
