"""ReLU with an L1 penalty: every positive pre-activation fires, and the penalty pays for decoder norms."""

from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts
from ..sparse import Latents
from .base import SAE, Batch, Objective, Recipe
from .losses import l1, mse


class ReLU(SAE, name="relu"):
    """Decoder norms are free: sum of z * |W_dec row| is what is penalised. No bias before the encoder."""

    paper = "Conerly et al. 2024, Circuits Updates April 2024 (transformer-circuits.pub); ReLU SAEs: arXiv:2309.08600"
    fires = "positive"
    in_slices = True
    recipe = Recipe(lr=5e-5, warmup=0.0, sparsity_warmup=0.05, unit_norm=False, scaling="sqrt_d")
    alone = True

    @dataclass(frozen=True)
    class Config(SAE.Config):
        l1_weight: float = knob(5.0, 0.0, 1e4, "price of one unit of latent activation times decoder norm")
        init_norm: float = knob(0.1, 1e-3, 10.0, "norm of the decoder rows at the start; the encoder's are the same")
        centred: bool = knob(False, help="whether b_dec is subtracted before the encoder")

    @torch.no_grad()
    def build(self) -> None:
        self.W_dec *= self.cfg.init_norm
        self.W_enc *= self.cfg.init_norm

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(0.0)).relu()

    def objective(self, batch: Batch) -> Objective:
        z = self.encode(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        penalty = self.cfg.l1_weight * l1(z, z.at(self.W_dec.norm(dim=1)))
        return Objective(x_hat, z, {"mse": mse(x_hat, batch.target), "l1": self.charge(penalty, z, batch)})
