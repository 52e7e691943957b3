"""Gradient SAE: TopK whose choice also asks how much a latent would change the model's loss."""

from dataclasses import dataclass
from math import pi, sqrt

import torch

from ..knobs import knob
from ..shapes import Acts, Rows, Scalar
from ..sparse import Latents, PreActs, Support, encode, token_mean, topk
from .base import SAE, Batch, Objective, Recipe
from .losses import dead_error, energy, geometric_median, power


class Gradient(SAE, name="gradient"):
    """The k latents of highest z + beta * z * |<d, g>| are kept, with g the gradient of the model's CE at x: to first
    order the CE changes by z * <d, g> if the latent is ablated. What is decoded stays z, and the loss is TopK's.

    Interpretation, since we know the paper from summaries and its term beta * z * |W_dec g| alone: that the term is
    added to z; beta and that it is constant; that g is divided by the batch's mean |<d, g>| of a random d, so that beta
    has no unit; AuxK and the whole recipe as in TopK; that `encode` chooses by z alone. `encode_with_grad` chooses as
    in training, but its latents know the next tokens: report it beside `encode`, never instead.
    """

    paper = "Olmo et al. 2024, arXiv:2411.10397 (interpretation)"
    fires = "topk"
    in_slices = True
    recipe = Recipe(lr=lambda d_sae: 2e-4 / sqrt(d_sae / 2**14), eps=6.25e-10)
    needs = frozenset({"grad"})
    in_units = (*SAE.in_units, "per_grad")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(32, 1, 2**20, "latents kept per token")
        beta: float = knob(1.0, 0.0, 1e6, "weight of the gradient in the choice; 0: TopK")
        normalize: bool = knob(
            True, help="whether the gradient is measured against the batch's mean; else beta has units"
        )
        k_aux: int | None = knob(None, 1, 8192, "dead latents that explain the residual; by default d_in / 2")
        aux_weight: float = knob(1 / 32, 0.0, 10.0, "weight of the AuxK term")
        momentum: float = knob(0.99, 0.0, 0.9999, "memory of the gradient's size, for encode_with_grad")

        def __post_init__(self):
            super().__post_init__()
            if self.per_token != "none":
                raise ValueError(
                    f"per_token={self.per_token!r} scales activations and not their gradients: leave it at 'none'."
                )

    def build(self) -> None:
        self.register_buffer("per_grad", torch.tensor(0.0))  # 1 / the gradient's size; it scales as x does

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        self.b_dec.copy_(geometric_median(target))

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.choose(topk, self.cfg.k)).relu()

    def encode_with_grad(self, x: Acts, grad: Acts) -> Latents:
        """Latents chosen as in training; the gradient's size is that of the last training batches."""
        pre = self.pre(x)
        return pre.keep(self._choose(pre, grad.reshape(pre.centred.shape), self.per_grad)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x, again=batch.dead)
        z = pre.keep(self._choose(pre, batch.grad, self._measure(batch.grad))).relu()
        x_hat = self.reconstruct(z, batch.x)
        missed = batch.target - x_hat
        aux = dead_error(pre, self.W_dec, missed, batch.dead, self.cfg.k_aux or max(1, self.cfg.d_in // 2))
        aux = self.cfg.aux_weight * aux / power(missed).clamp(min=1e-12)
        return Objective(x_hat, z, {"mse": energy(missed), "auxk": aux})

    @torch.no_grad()
    def _choose(self, pre: PreActs, grad: Rows, per_grad: Scalar) -> Support:
        """The k latents of highest z * (1 + beta |<d, g>|)."""
        slope = encode(grad * (self.cfg.beta * per_grad), self.W_dec.detach(), choose_in=pre.choose_in)
        return pre.choose(topk, self.cfg.k, boost=slope)

    @torch.no_grad()
    def _measure(self, grad: Rows) -> Scalar:
        """One over what |<d, g>| is on average for a random direction d."""
        if not self.cfg.normalize:
            return self.per_grad.fill_(1.0)
        size = token_mean(grad.norm(dim=1)) * sqrt(2 / (pi * grad.shape[1]))
        per_grad = torch.where(size > 0, 1 / size, 0)
        followed = self.per_grad.lerp(per_grad.to(self.per_grad), 1 - self.cfg.momentum)
        self.per_grad.copy_(torch.where(self.per_grad == 0, per_grad, followed))
        return per_grad
