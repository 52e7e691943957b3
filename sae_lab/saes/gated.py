"""Gated: one set of directions decides which latents fire and, rescaled, how strongly."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..knobs import knob
from ..shapes import Acts
from ..sparse import Latents, decode, encode
from .base import SAE, Batch, Objective, Recipe
from .losses import l1, mse


class Gated(SAE, name="gated"):
    """With u = W_enc (x - b_dec): f = H(u + b_enc) * relu(exp(r_mag) u + b_mag), where b_enc is the gate's bias.

    The step has no slope: gates learn from an L1 penalty on relu(u + b_enc), and from how well it reconstructs through
    a decoder and a b_dec that are constants to this auxiliary term. Magnitudes pay nothing, so they do not shrink.
    Decoder rows are held at unit norm, else the penalty could be evaded. Interpretation: the penalty's default, meant
    for unit mean square; warm-ups as shares of the run (the paper counts steps); no resampling of dead latents.
    """

    paper = "Rajamanoharan et al. 2024, arXiv:2404.16014"
    fires = "gate"
    in_slices = True
    recipe = Recipe(lr=3e-4, betas=(0.0, 0.999), warmup=0.01, decay=0.0, sparsity_warmup=0.05, clip=0.0)
    alone = True
    in_units = (*SAE.in_units, "b_mag")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        l1_weight: float = knob(0.04, 0.0, 1e4, "price of one unit of an open gate's pre-activation")
        aux_weight: float = knob(1.0, 0.0, 10.0, "weight of the gates' own reconstruction; the paper's is 1")

    def build(self) -> None:
        self.r_mag = nn.Parameter(torch.zeros(self.cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.cfg.d_sae))

    def encode(self, x: Acts) -> Latents:
        return self._fire(x)[1]

    def objective(self, batch: Batch) -> Objective:
        gate, z = self._fire(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        by_gates = decode(gate, self.W_dec.detach()) + self.beside(batch.x).detach()
        terms = {
            "mse": mse(x_hat, batch.target),
            "l1": self.charge(self.cfg.l1_weight * l1(gate), z, batch),
            "aux": self.cfg.aux_weight * mse(by_gates, batch.target),
        }
        return Objective(x_hat, z, terms)

    @torch.no_grad()
    def as_jumprelu(self) -> dict[str, Tensor]:
        """The state of the `jumprelu` SAE with the same latents and reconstructions.

        A gate opens where the magnitude before its relu exceeds b_mag - exp(r_mag) b_enc: that, or 0 if it is negative,
        is the threshold.
        """
        rescale = self.r_mag.exp()
        W_enc = self.W_enc * rescale[:, None]
        threshold = (self.b_mag - rescale * self._b_gate).relu()
        b_enc = self.b_mag if self.centre is None else self.b_mag - W_enc @ self.centre
        kept = {name: getattr(self, name).clone() for name in ("W_dec", "b_dec", "W_skip") if name in self.state_dict()}
        return {"W_enc": W_enc, "b_enc": b_enc, "log_threshold": threshold.double().log(), **kept}

    @property
    def _b_gate(self) -> Tensor:
        return torch.zeros_like(self.b_mag) if self.b_enc is None else self.b_enc

    def _fire(self, x: Acts) -> tuple[Latents, Latents]:
        """relu(u + b_enc) and f, both where gates are open."""
        x = self.normed(x.to(self.W_enc.dtype))
        pre = encode(x, self.W_enc, centre=self.centre, choose_in=self.choose_in)
        u = pre.keep(pre.over(-self._b_gate.detach()))
        magnitude = u.at(self.r_mag.exp()) * u.value + u.at(self.b_mag)
        return u.to(u.value + u.at(self._b_gate)), u.to(magnitude.relu())
