"""End-to-end: ReLU latents that explain what the model does with an activation, instead of the activation itself."""

from dataclasses import dataclass

import torch
from torch import nn

from ..knobs import knob
from ..shapes import Acts
from ..sparse import Latents
from .base import SAE, Batch, Objective, Recipe
from .losses import l1, mse

L1_WEIGHT = {"local": 6.0, "e2e": 1.5, "e2e_ds": 1.5}  # the paper's, of GPT-2 small's layer 6
KL_WEIGHT = {"e2e": 1.0, "e2e_ds": 0.5}


class EndToEnd(SAE, name="end_to_end"):
    """Loss: l1_weight |z|_1 / d_in, and one of
        local    |x - x_hat|^2 / d_in: the usual SAE, to compare with
        e2e      kl_weight KL(model || model with x_hat spliced in), nats per token
        e2e_ds   the same KL, and later_weight times the mean, over the layers behind the next, of the squared distance
                 / d_in between the residuals that they read in the spliced and in the clean run.

    Batches are whole contexts, also of "local": its texts come in the same order. As the authors' code has it, and not
    its words, the KL is from the clean run; its atoms are normalised in the forward pass: at unit norm its gradient is
    the one along which our recipe steps before it restores the norm. Interpretation: the encoder starts as the decoder;
    special tokens keep their own activations; the rate falls along a line to 0 (theirs by a cosine to a tenth); all
    residuals are scaled by one number, to a mean norm of sqrt(d_in) at the site, since raw norms differ ninefold even
    between layers of the embedded Llama, and a price with them. With scaling="none" the loss is the paper's.
    """

    paper = "Braun et al. 2024, arXiv:2405.12241"
    fires = "positive"
    recipe = Recipe(lr=5e-4, warmup=0.05, decay=0.95, clip=10.0, scaling="sqrt_d")
    alone = True
    needs = frozenset({"patched_kl"})

    @dataclass(frozen=True)
    class Config(SAE.Config):
        kind: str = knob(
            "e2e",
            choices=("local", "e2e", "e2e_ds"),
            help="what is matched: x, the model's output, or later layers too",
        )
        l1_weight: float | None = knob(
            None, 0.0, 1e4, "price of one unit of latent activation, over d_in; by default 6 if local, else 1.5"
        )
        kl_weight: float | None = knob(None, 0.0, 1e4, "weight of the KL; by default 1 for e2e, 0.5 for e2e_ds")
        later_weight: float = knob(2.5, 0.0, 1e4, "weight of the later layers' errors, all together")
        centred: bool = knob(False, help="whether b_dec is subtracted before the encoder")

        def __post_init__(self):
            super().__post_init__()
            if self.per_token != "none":
                raise ValueError(
                    f"per_token={self.per_token!r} has no meaning for end_to_end, whose x_hat is spliced as "
                    'it is. Leave it at "none".'
                )

    @torch.no_grad()
    def build(self) -> None:
        rng = torch.Generator().manual_seed(self.cfg.seed)
        nn.init.orthogonal_(self.W_dec, generator=rng)
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        self.W_enc.copy_(self.W_dec)

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(0.0)).relu()

    def objective(self, batch: Batch) -> Objective:
        kind, d_in = self.cfg.kind, self.cfg.d_in
        z = self.encode(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        price = L1_WEIGHT[kind] if self.cfg.l1_weight is None else self.cfg.l1_weight
        terms = {"l1": self.charge(price / d_in * l1(z), z, batch)}
        if kind == "local":
            return Objective(x_hat, z, terms | {"mse": mse(x_hat, batch.target) / d_in})
        cost = batch.patched_kl(x_hat, later=kind == "e2e_ds")
        weight = KL_WEIGHT[kind] if self.cfg.kl_weight is None else self.cfg.kl_weight
        terms["kl"] = weight * cost.kl
        if kind == "e2e_ds":
            terms["later"] = self.cfg.later_weight / d_in * cost.later
        return Objective(x_hat, z, terms)
