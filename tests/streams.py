"""Made-up activations for tests of the loop: block t is a function of (seed, t), rows pass through a ring."""

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    x: torch.Tensor
    target: torch.Tensor
    doc: torch.Tensor
    position: torch.Tensor
    grad: torch.Tensor | None = None
    patched_kl: object = None


class Statistics(NamedTuple):
    mean_norm: float
    mean_square: float


class Stream:
    """Sparse sums of `true` random directions, with a mean, at every site the same."""

    def __init__(self, d_in=16, true=32, k=3, seed=0, sites=("L1R",), size=3.0, ring=512):
        g = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(torch.randn(true, d_in, generator=g), dim=1)
        self.mean = torch.randn(d_in, generator=g) * 0.3
        self.sites, self.width, self.k, self.seed, self.size = list(sites), d_in, k, seed, size
        self.block, self.served = 0, 0
        self.dice = torch.Generator().manual_seed(seed + 1)
        self.ring = self._fresh(ring)

    def d_in(self, site):
        return self.width

    def statistics(self, site):
        x = self.ring if self.block == 1 else Stream(self.width, len(self.directions), self.k, self.seed).ring
        return Statistics(x.norm(dim=1).mean().item(), x.square().sum(1).mean().item())

    def describe(self):
        return {"text": "made up", "seed": self.seed, "k": self.k}

    def next(self, n):
        at = torch.randperm(len(self.ring), generator=self.dice)[:n]
        x = self.ring[at]
        self.ring[at] = self._fresh(n)
        self.served += n
        doc = torch.zeros(n, dtype=torch.long)
        return {site: Rows(x, x, doc, doc) for site in self.sites}

    def state(self):
        return {"ring": self.ring, "dice": self.dice.get_state()}, {"block": self.block, "served": self.served}

    def restore(self, tensors, state):
        self.ring.copy_(tensors["ring"])
        self.dice.set_state(tensors["dice"])
        self.block, self.served = state["block"], state["served"]

    def _fresh(self, n):
        g = torch.Generator().manual_seed(10**6 * (self.seed + 1) + self.block)
        self.block += 1
        score = torch.rand(n, len(self.directions), generator=g)
        z = torch.rand(n, len(self.directions), generator=g) * (score >= score.topk(self.k).values[:, -1:])
        return self.size * (z @ self.directions + self.mean)
