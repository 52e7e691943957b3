"""GroupMax: the dictionary is cut into k groups, and the largest latent of each fires."""

from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts, Rows
from ..sparse import Latents, group_topk
from .base import SAE, Batch, Objective, Recipe
from .losses import energy, geometric_median


class GroupMax(SAE, name="groupmax"):
    """As sparsify (EleutherAI) has it beside TopK: no sorting, and no latent competes with one of another group. A
    group whose largest pre-activation is not positive has none. Where k does not divide d_sae the last group is
    smaller. No AuxK. The recipe is TopK's.
    """

    paper = "Gao et al. 2024, arXiv:2406.04093, in groups as in EleutherAI's sparsify"
    fires = "grouptop"
    recipe = Recipe(lr=2e-4, eps=6.25e-10)

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "groups, and so latents kept per token at most")

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(geometric_median(target))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.choose(group_topk, self.cfg.k)).relu()

    def objective(self, batch: Batch) -> Objective:
        z = self.encode(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        missed = batch.target - x_hat
        return Objective(x_hat, z, {"mse": energy(missed)})
