"""p-annealing: a ReLU SAE whose L1 penalty turns step by step into Lp^p with p < 1, its price re-balanced each time."""

from dataclasses import dataclass

import torch

from ..knobs import knob
from ..shapes import Acts, Scalar
from ..sparse import Latents
from .base import SAE, Batch, Objective, Recipe
from .losses import mse, per_token


class PAnneal(SAE, name="p_anneal"):
    """Loss: |x - x_hat|^2 + price * sum of z^p. When p falls, price *= (sum of z^p before) / (sum of z^p after), sums
    taken over the last batches, so that the penalty does not jump.

    Interpretation: written from the authors' code, whose loss is the norm and not its square, which warms up for 1,000
    steps and never quite reaches p_end. The shares of the run, the scale of the activations (and so of l1_weight),
    the clip and the fall of the learning rate are ours.
    """

    paper = "Karvonen et al. 2024, arXiv:2408.00113"
    fires = "positive"
    in_slices = True
    recipe = Recipe(lr=1e-3, sparsity_warmup=0.05, scaling="sqrt_d")
    alone = True

    @dataclass(frozen=True)
    class Config(SAE.Config):
        l1_weight: float = knob(5.0, 0.0, 1e4, "price of one unit of latent activation while p is 1")
        p_end: float = knob(0.2, 0.01, 1.0, "the exponent at the end of the run")
        anneal_start: float = knob(0.1, 0.0, 0.99, "share of the run after which p falls for the first time")
        updates: int = knob(10, 1, 1000, "times that p falls, all by as much")
        queue: int = knob(10, 1, 1000, "batches that the price is re-balanced on")

    def build(self) -> None:
        self.register_buffer("updated", torch.tensor(0))  # how often p has fallen
        self.register_buffer("balance", torch.tensor(1.0))  # what multiplies l1_weight
        self.register_buffer("sums", torch.zeros(self.cfg.queue, 2))  # of the last batches: with this p, with the next

    def encode(self, x: Acts) -> Latents:
        pre = self.pre(x)
        return pre.keep(pre.over(0.0)).relu()

    def objective(self, batch: Batch) -> Objective:
        z = self.encode(batch.x)
        x_hat = self.reconstruct(z, batch.x)
        self._anneal(z, batch.progress)
        penalty = self.cfg.l1_weight * self.balance * lpp(z, self.p(int(self.updated)))
        return Objective(x_hat, z, {"mse": mse(x_hat, batch.target), "lpp": self.charge(penalty, z, batch)})

    def p(self, updates: int) -> float:
        """The exponent after so many falls."""
        return 1 + (self.cfg.p_end - 1) * updates / self.cfg.updates

    @torch.no_grad()
    def _anneal(self, z: Latents, progress: float) -> None:
        """Lets p fall if it is time."""
        done, due = int(self.updated), self._due(progress)
        if done == self.cfg.updates:
            return
        following = max(due, done + 1)
        if following > done + 1:  # a short run skips some: what was summed for the next one is of no use
            self.sums.zero_()
        now = torch.stack([lpp(z, self.p(done)), lpp(z, self.p(following))])
        self.sums.copy_(torch.cat([self.sums[1:], now[None]]))
        if due > done:
            before, after = self.sums.sum(0)
            self.balance *= before / after if after > 0 else 1
            self.updated.fill_(due)
            self.sums.zero_()

    def _due(self, progress: float) -> int:
        """How often p should have fallen: first at anneal_start, then after equal shares of what is left."""
        start = self.cfg.anneal_start
        if progress < start:
            return 0
        return min(self.cfg.updates, 1 + int(self.cfg.updates * (progress - start) / (1 - start)))


def lpp(z: Latents, p: float) -> Scalar:
    """Sum of the latents' values to the power of p, averaged over tokens."""
    return per_token(z.value.pow(p), z.support.tok)
