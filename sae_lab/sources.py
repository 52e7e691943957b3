"""What a source of activations serves, and what it must be able to do to be trained on and resumed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from . import shapes
from .shapes import Direction, Scalar, TokenInts
from .sites import Site


class Cost(NamedTuple):
    """What reconstructions cost the model they are spliced into, as means over tokens; gradients reach them.

    Attributes:
        kl: KL(clean || spliced) in nats, over the places that `models.Splice` counts.
        later: MSE of the residuals that later layers read, mean over these layers; 0 where it was not asked for.
    """

    kl: Scalar
    later: Scalar


class Rows(NamedTuple):
    """A batch of activations of one site, raw, special tokens left out.

    Attributes:
        target: what an SAE of this site should give: `x` itself, unless it transcodes.
        doc: which document each token is from.
        position: where in its document.
        grad: gradient of the model's CE with respect to the target, where it was asked for.
        patched_kl: (x_hat, later=False) -> Cost of x_hat, in the units of `target`, where it was asked for.
    """

    x: shapes.Rows
    target: shapes.Rows
    doc: TokenInts
    position: TokenInts
    grad: shapes.Rows | None = None
    patched_kl: Callable[..., Cost] | None = None


@dataclass(frozen=True)
class Statistics:
    """How large a site's activations are, measured once on the first `tokens` of them.

    Attributes:
        mean_norm: E|x|.
        mean_square: E|x|^2.
        mean: E x.
    """

    mean_norm: float
    mean_square: float
    mean: Direction
    tokens: int

    @classmethod
    def of(cls, x: shapes.Rows) -> "Statistics":
        """Those of a sample, summed in float64, a piece at a time."""
        n, square, norm, total = len(x), 0.0, 0.0, torch.zeros(x.shape[1], dtype=torch.float64)
        for part in x.split(8192):
            part = part.double()
            squares = part.square().sum(-1)
            square, norm = square + float(squares.sum()), norm + float(squares.sqrt().sum())
            total += part.sum(0).cpu()
        return cls(norm / n, square / n, (total / n).float().to(x.device), n)


@runtime_checkable
class Source(Protocol):
    """Endless batches of activations, a pure function of a seed and of how many were served."""

    sites: Sequence[Site]
    served: int

    def d_in(self, site: str) -> int: ...

    def statistics(self, site: str) -> Statistics: ...

    def next(self, n: int) -> Mapping[Site, Rows]:
        """The next n tokens of every site."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs to go on from here: tensors, and a JSON object."""

    def restore(self, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None: ...

    def describe(self) -> dict[str, Any]:
        """A JSON object that says how to build it again."""
