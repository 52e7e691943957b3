"""Planted dictionaries: activations whose true features are known, for tests and for seeing what a method can find."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import shapes
from .knobs import check, knob
from .shapes import Weights
from .sites import Site
from .sources import Rows, Statistics

BLOCK = 1024  # tokens made at a time, from (seed, number of the block)
DOC = 64  # tokens of a make-believe document
MEASURED = 8192  # tokens that `statistics` looks at


@dataclass(frozen=True)
class PlantedConfig:
    d_in: int = knob(16, 1, 2**16, "width of the activation")
    features: int = knob(32, 1, 2**20, "true features: directions of norm 1")
    k: int = knob(3, 1, 2**10, "features active per token; with `hierarchical` their parents come on top")
    zipf: float = knob(0.0, 0.0, 4.0, "exponent of the law of feature frequencies; 0: all alike")
    noise: float = knob(0.0, 0.0, 100.0, "standard deviation of Gaussian noise on each coordinate")
    hierarchical: bool = knob(False, help="odd features are children: the even one before is on whenever they are")
    seed: int = knob(0, 0, 2**31 - 1, "seed of the dictionary and of the stream")

    def __post_init__(self):
        check(self)
        if self.k > self.features:
            raise ValueError(f"k={self.k} must be at most features={self.features}.")


class Planted:
    """A source of x = codes @ dictionary + noise: k distinct features a token, coefficients |N(0, 1)|.

    The generator of Song et al. (arXiv:2505.20254): `Planted(d_in=16, features=32, k=3)`. A stream is a pure function
    of (seed, block number); `stream` sets apart streams of one dictionary: 0 to train on, others to test on.
    """

    def __init__(self, *, site: str = "L0R", stream: int = 0, **config: Any):
        self.cfg, self.stream, self.sites = PlantedConfig(**config), stream, [Site(site)]
        rng = _generator(self.cfg.seed, spawn_key=(1,))  # the seed itself would give the first weights of an SAE's seed
        rows = torch.randn(self.cfg.features, self.cfg.d_in, generator=rng)
        self.dictionary: Weights = rows / rows.norm(dim=1, keepdim=True)
        self.served = 0

    def d_in(self, site: str) -> int:
        return self.cfg.d_in

    def statistics(self, site: str) -> Statistics:
        return Statistics.of(self.rows(0, MEASURED)[0])

    def next(self, n: int) -> dict[Site, Rows]:
        """The next n tokens."""
        place = torch.arange(self.served, self.served + n)
        x, _ = self.rows(self.served, n)
        self.served += n
        return {self.sites[0]: Rows(x, x, place // DOC, place % DOC)}

    def rows(self, start: int, n: int) -> tuple[shapes.Rows, Float[Tensor, "tok features"]]:
        """Activations and true codes of the tokens from `start` on."""
        first, last = start // BLOCK, (start + n - 1) // BLOCK
        x, codes = (
            torch.cat(parts)[start - first * BLOCK :][:n] for parts in zip(*map(self._block, range(first, last + 1)))
        )
        return x, codes

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"served": self.served}

    def restore(self, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
        self.served = described["served"]

    def describe(self) -> dict[str, Any]:
        return {"source": "planted", "site": self.sites[0], "stream": self.stream} | asdict(self.cfg)

    def _block(self, number: int) -> tuple[Tensor, Tensor]:
        c = self.cfg
        rng = _generator((c.seed, self.stream, number))
        law = -c.zipf * torch.arange(1, c.features + 1).log()
        tickets = law - torch.empty(BLOCK, c.features).exponential_(generator=rng).log()  # Gumbel: top-k draws k of law
        codes = torch.zeros(BLOCK, c.features)
        chosen = tickets.topk(c.k).indices
        codes.scatter_(1, chosen, torch.randn(BLOCK, c.k, generator=rng).abs())
        if c.hierarchical:
            child, parent = codes[:, 1::2], codes[:, ::2][:, : c.features // 2]
            parent += (child > 0) & (parent == 0)
        x = codes @ self.dictionary
        return x + c.noise * torch.randn(x.shape, generator=rng) if c.noise else x, codes


def _generator(entropy: Any, spawn_key: tuple[int, ...] = ()) -> torch.Generator:
    state = np.random.SeedSequence(entropy, spawn_key=spawn_key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
