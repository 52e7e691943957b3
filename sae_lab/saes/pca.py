"""Principal components as a dictionary: each direction and its opposite, the k largest of each token."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts, Part, Rows
from ..sparse import Latents, topk
from .base import SAE, Batch, Objective, Recipe
from .losses import mse


class PCA(SAE, name="pca"):
    """What variance alone finds. `calibrate` measures mean and covariance; before, the directions are the axes."""

    paper = "a baseline; Pearson 1901, and as one for SAEs: Cunningham et al. 2023, arXiv:2309.08600"
    fires = "topk"
    recipe = Recipe(lr=0.0)
    trainable = False

    @dataclass(frozen=True)
    class Config(SAE.Config):
        d_sae: int | None = knob(None, 2, 2**20, "number of latents: twice d_in, a direction and its opposite each")
        k: int = knob(32, 1, 2**20, "latents kept per token")
        encoder_bias: bool = knob(False, help="whether latents have a bias of their own; without, b_enc does not exist")

        def __post_init__(self):
            if self.d_sae is None:
                object.__setattr__(self, "d_sae", 2 * self.d_in)
            if self.d_sae != 2 * self.d_in:
                raise ValueError(f"d_sae={self.d_sae} must be 2 * d_in = {2 * self.d_in} for pca. Leave d_sae out.")
            super().__post_init__()

    @torch.no_grad()
    def build(self) -> None:
        self._set(torch.eye(self.cfg.d_in))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.choose(topk, self.cfg.k)).relu()

    def objective(self, batch: Batch) -> Objective:
        z = self.encode(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        return Objective(x_hat, z, {"mse": mse(x_hat, batch.target)})

    @torch.no_grad()
    def calibrate(self, chunks: Iterable[Part]) -> None:
        n, total, square = 0, 0, 0
        for x in chunks:
            x = x.double()
            n, total, square = n + len(x), total + x.sum(0), square + x.T @ x
        if not n:
            raise ValueError("calibrate() got no activations: give it fresh training rows.")
        mean = total / n
        directions = torch.linalg.eigh(square / n - mean.outer(mean)).eigenvectors.flip(1).T
        self.b_dec.copy_(mean)
        self._set(directions)

    def _set(self, directions: Rows) -> None:
        both = torch.cat([directions, -directions])
        self.W_enc.copy_(both)
        self.W_dec.copy_(both)
