"""Matryoshka BatchTopK: every prefix of the dictionary reconstructs on its own, so that early latents stay general."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..knobs import knob
from ..shapes import Acts, Part
from ..sparse import Latents, batch_topk, decode
from .base import SAE, Batch, Objective, Recipe
from .losses import dead_error, mse
from .select import batch_threshold, follow


class Matryoshka(SAE, name="matryoshka"):
    """One BatchTopK over all latents; the loss is the mean MSE of b_dec alone and of b_dec with each prefix.

    The level of b_dec alone is in the authors' code and left out by ports. AuxK explains what the whole dictionary
    missed. As in BatchTopK, the threshold is set at the end so that mean L0 is k. The authors do not scale the input.
    """

    paper = "Bussmann et al. 2025, arXiv:2503.17547"
    fires = "threshold"
    in_slices = True
    recipe = Recipe(lr=3e-4, betas=(0.9, 0.99))
    alone = True
    in_units = (*SAE.in_units, "threshold")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token, on average over the batch")
        levels: int = knob(5, 1, 16, "prefixes: the whole dictionary, its first half, the first half of that ...")
        bias_level: bool = knob(True, help="whether b_dec alone counts as a level")
        encoder_bias: bool = knob(False, help="whether latents have a bias of their own; without, b_enc does not exist")
        k_aux: int = knob(512, 1, 8192, "dead latents that explain the residual")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the AuxK term")
        momentum: float = knob(0.9, 0.0, 0.9999, "memory of the threshold that stands in until the end of training")

        def __post_init__(self):
            super().__post_init__()
            if self.d_sae < 2 ** (self.levels - 1):
                least = 2 ** (self.levels - 1)
                raise ValueError(f"levels={self.levels} need d_sae={self.d_sae} to be at least {least}. Lower levels.")

        @property
        def bounds(self) -> list[int]:
            """Where each prefix ends, the shortest first."""
            return [self.d_sae >> halvings for halvings in reversed(range(self.levels))]

    def build(self) -> None:
        self.register_buffer("threshold", torch.tensor(0.0))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(self.threshold)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x, again=batch.dead)
        z = pre.keep(pre.choose(batch_topk, self.cfg.k * len(batch.x))).relu()
        follow(self.threshold, z, self.cfg.momentum)
        levels = self.levels(z, batch.x)
        errors = [mse(x_hat, batch.target) for x_hat in (levels if self.cfg.bias_level else levels[1:])]
        missed = (batch.target - levels[-1]).detach()
        aux = self.cfg.aux_weight * dead_error(pre, self.W_dec, missed, batch.dead, self.cfg.k_aux)
        return Objective(levels[-1], z, {"mse": sum(errors) / len(errors), "auxk": aux})

    def levels(self, z: Latents, x: Acts) -> list[Tensor]:
        """Reconstructions from no latent, the first prefix, the second ... and the whole dictionary."""
        shells = decode(z.split(self.cfg.bounds), self.W_dec)  # what each prefix adds to the one before
        x_hats = [self.beside(x).expand(*shells.shape[:-2], -1)]
        for shell in shells.unbind(-2):
            x_hats.append(x_hats[-1] + shell)
        return x_hats

    @torch.no_grad()
    def calibrate(self, chunks: Iterable[Part]) -> None:
        self.threshold.fill_(batch_threshold((self.pre(x) for x in chunks), self.cfg.k))
