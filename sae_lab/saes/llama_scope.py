"""Llama Scope: TopK by activation times decoder norm, K annealed from d_in / 2; then a JumpReLU of one threshold."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts, Part, Rows, Scalar
from ..sparse import Latents, PreActs, Support, token_mean, topk
from .base import SAE, Batch, Objective, Recipe
from .select import annealed, batch_threshold


class LlamaScope(SAE, name="llama_scope"):
    """Decoder norms are free: they decide which latents are kept, and the values are kept without them. No AuxK.

    As the released code and SAEs have it, where the paper's prose differs (K would start at d_in). Theirs: batches of
    2,048 tokens, 5,000 steps of warm-up in 390,625, a learning rate that falls to 1% of its peak (here to 0),
    Kaiming-uniform directions (here Gaussian). Clipping at 0.001 only levels the gradients: Adam does not mind their
    scale. `calibrate` converts: decoder norms move into the encoder, and one
    threshold for all latents gives mean L0 = k. Until then a token keeps its k best.
    """

    paper = "He et al. 2024, arXiv:2410.20526"
    in_slices = True
    recipe = Recipe(lr=8e-4, betas=(0.9, 0.9999), warmup=0.0128, clip=1e-3, unit_norm=False, scaling="sqrt_d")
    in_units = (*SAE.in_units, "threshold")

    @dataclass(frozen=True)
    class Config(SAE.Config):
        k: int = knob(50, 1, 2**20, "latents kept per token once the annealing is over")
        k_init: int | None = knob(None, 1, 2**20, "latents kept per token at the first step; by default d_in / 2")
        k_anneal: float = knob(0.1, 0.0, 1.0, "share of the run over which the latents kept fall to k")
        init_norm: float | None = knob(0.5, 1e-3, 10.0, "norm of all rows at the start; None: searched for on a sample")
        tied_init: bool = knob(True, help="whether encoder rows start as the decoder's; not so in their transcoders")
        centred: bool = knob(False, help="whether b_dec is subtracted before the encoder")

        def __post_init__(self):
            super().__post_init__()
            if self.init_norm is None and not self.tied_init:
                raise ValueError("init_norm=None searches with tied rows only: give init_norm, or leave tied_init on.")

    @torch.no_grad()
    def build(self) -> None:
        self.register_buffer("threshold", torch.tensor(0.0))
        if not self.cfg.tied_init:
            rng = torch.Generator().manual_seed(self.cfg.seed + 1)
            self.W_enc.normal_(generator=rng)
        self._rescale(self.cfg.init_norm or 0.5)

    @torch.no_grad()
    def prepare(self, x: Rows, target: Rows) -> None:
        """The grid search of the released code (its final runs took 0.5): tenths, then 20 points around the best."""
        if self.cfg.init_norm is None:
            norm = self._best_norm(x, target, [step / 10 for step in range(1, 11)])
            self._rescale(self._best_norm(x, target, torch.linspace(norm - 0.09, norm + 0.1, 20).tolist()))

    @property
    def alone(self) -> bool:
        """Once there is a threshold."""
        return bool(self.threshold > 0)

    @property
    def fires(self) -> str:
        """As the paper says of its two stages."""
        return "threshold" if self.alone else "priced topk"

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(self.threshold) if self.threshold > 0 else self._best(pre, self.cfg.k)).relu()

    def objective(self, batch: Batch) -> Objective:
        pre = self.pre(batch.x)
        z = pre.keep(self._best(pre, self.kept(batch.progress))).relu()
        x_hat = self.reconstruct(z, batch.x)
        return Objective(x_hat, z, {"error": relative_error(x_hat, batch.target)})

    def kept(self, progress: float) -> int:
        """K at a point of the run: ceil(max(1, r + (1 - r) t / T) k), where r k = k_init and T = k_anneal."""
        first = self.cfg.k_init or self.cfg.d_in // 2
        return min(annealed(first, self.cfg.k, self.cfg.k_anneal, progress), self.cfg.d_sae)

    @torch.no_grad()
    def calibrate(self, chunks: Iterable[Part]) -> None:
        norms = self.W_dec.norm(dim=1)
        self.W_dec /= norms.clamp(min=1e-12)[:, None]
        self.W_enc *= norms[:, None]
        if self.b_enc is not None:
            self.b_enc *= norms
        self.threshold.fill_(batch_threshold((self.pre(x) for x in chunks), self.cfg.k))

    def _best(self, pre: PreActs, k: int) -> Support:
        """The k latents of each token with the largest activation times decoder norm."""
        return pre.choose(topk, k, price=self.W_dec.detach().norm(dim=1))

    def _best_norm(self, x: Rows, target: Rows, norms: list[float]) -> float:
        """The norm of all rows with which the first step's loss is least."""
        losses, silent = [], x.new_zeros(self.cfg.d_sae, dtype=torch.bool)
        for norm in norms:
            self._rescale(norm)
            losses.append(self.objective(Batch(x, target, silent)).terms["error"])
        return norms[int(torch.stack(losses).argmin())]

    def _rescale(self, norm: float) -> None:
        for rows in (self.W_enc, self.W_dec):
            rows *= norm / rows.norm(dim=1, keepdim=True)


def relative_error(x_hat: Rows, target: Rows) -> Scalar:
    """Mean over tokens and d_in of the squared error, each token's over its distance (not squared) from the mean."""
    spread = (target - token_mean(target)).square().sum(1).clamp(min=1e-8).sqrt()
    return token_mean((x_hat - target).square().mean(1) / spread)
