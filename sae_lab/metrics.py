"""How good a reconstruction is and how sparse: functions of tensors, and the same streamed over any number of batches.

Sums are float64. `Tally` keeps them per document, so that an interval can be had by drawing documents anew.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .shapes import Acts, LatentMask, PerLatent, PerToken, Rows, TokenInts
from .sparse import Latents

PerDoc = Float[Tensor, " docs"]


def fvu(x_hat: Acts, target: Acts) -> float:
    """Fraction of variance unexplained: 0 is perfect, 1 is no better than the mean of these tokens."""
    x_hat, target = _rows(x_hat), _rows(target)
    return ((x_hat - target).square().sum() / (target - target.mean(0)).square().sum()).item()


def cosine(x_hat: Acts, target: Acts) -> float:
    """Cosine of reconstruction and target, mean over tokens; 0 where either is zero."""
    return _cosine(_rows(x_hat), _rows(target)).mean().item()


def density(z: Latents) -> PerLatent:
    """Share of tokens on which each latent fires."""
    return _firings(z).double() / max(1, z.support.tok)


def bias(x_hat: Acts, target: Acts) -> float:
    """Relative reconstruction bias E|x_hat|^2 / E[x_hat . x]: 1 is none, below 1 is shrinkage (arXiv:2404.16014)."""
    x_hat, target = _rows(x_hat), _rows(target)
    return (x_hat.square().sum() / (x_hat * target).sum()).item()


@dataclass(frozen=True)
class Sums:
    """One number per document (or one in all): sums over its tokens, float64.

    Attributes:
        tokens: how many.
        error: of |x_hat - x|^2.
        square: of |x|^2.
        spread: of |x - mean|^2, the mean being that of all documents.
        cosine: of the cosine of x_hat and x.
        l0: of the number of latents that fire.
        overlap: of x_hat . x.
        power: of |x_hat|^2.
    """

    tokens: PerDoc
    error: PerDoc
    square: PerDoc
    spread: PerDoc
    cosine: PerDoc
    l0: PerDoc
    overlap: PerDoc
    power: PerDoc


class Tally:
    """Metrics of a stream of batches: `add` each, then read `fvu`, `l0`, `cosine`, `bias`, `density`, `dead`."""

    def __init__(self) -> None:
        self.tokens = 0
        self._place: dict[int, int] = {}  # document -> row
        self._sums = torch.zeros(0, 7, dtype=torch.float64)
        self._x = torch.zeros(0, 0, dtype=torch.float64)
        self._firings = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def add(self, x_hat: Rows, target: Rows, z: Latents, doc: TokenInts | None = None) -> None:
        """One batch; without `doc`, all tokens are of one document."""
        x_hat, x = _rows(x_hat), _rows(target)
        l0 = torch.zeros(len(x), dtype=torch.float64).index_add_(
            0, z.support.token.cpu(), (z.value != 0).double().cpu()
        )
        columns = torch.stack(
            [
                torch.ones(len(x), dtype=torch.float64),
                (x_hat - x).square().sum(1),
                x.square().sum(1),
                _cosine(x_hat, x),
                l0,
                (x_hat * x).sum(1),
                x_hat.square().sum(1),
            ],
            1,
        )
        row = self._rows_of(doc if doc is not None else torch.zeros(len(x), dtype=torch.long), x.shape[1])
        self._sums.index_add_(0, row, columns)
        self._x.index_add_(0, row, x)
        fired = _firings(z).cpu()
        self._firings = fired + self._firings if len(self._firings) else fired
        self.tokens += len(x)

    @property
    def documents(self) -> Sums:
        """The sums of each document, in the order in which they came."""
        n, error, square, cos, l0, overlap, power = self._sums[: len(self._place)].T
        x = self._x[: len(self._place)]
        mean = x.sum(0) / max(1, self.tokens)
        return Sums(n, error, square, square - 2 * x @ mean + n * mean.square().sum(), cos, l0, overlap, power)

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained, over all tokens added."""
        d = self.documents
        return (d.error.sum() / d.spread.sum()).item()

    @property
    def l0(self) -> float:
        """Latents that fire per token, mean."""
        return (self.documents.l0.sum() / self.tokens).item()

    @property
    def cosine(self) -> float:
        """Cosine of reconstruction and target, mean over tokens."""
        return (self.documents.cosine.sum() / self.tokens).item()

    @property
    def bias(self) -> float:
        """Relative reconstruction bias: below 1 is shrinkage."""
        d = self.documents
        return (d.power.sum() / d.overlap.sum()).item()

    @property
    def density(self) -> PerLatent:
        """Share of tokens on which each latent fires."""
        return self._firings.double() / max(1, self.tokens)

    @property
    def dead(self) -> LatentMask:
        """Latents that fired on none of the `tokens` added."""
        return self._firings == 0

    def _rows_of(self, doc: Tensor, d_in: int) -> Tensor:
        names, inverse = doc.cpu().unique(return_inverse=True)
        rows = torch.tensor([self._place.setdefault(name, len(self._place)) for name in names.tolist()])
        if len(self._place) > len(self._sums):
            more = max(len(self._place), 2 * len(self._sums)) - len(self._sums)
            self._sums = torch.cat([self._sums, self._sums.new_zeros(more, 7)])
            self._x = torch.cat([self._x.view(-1, d_in), self._x.new_zeros(more, d_in)])
        return rows[inverse]


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).double().cpu()


def _cosine(x_hat: Tensor, x: Tensor) -> PerToken:
    return (x_hat * x).sum(1) / (x_hat.norm(dim=1) * x.norm(dim=1)).clamp(min=1e-300)


def _firings(z: Latents) -> Tensor:
    return torch.bincount(z.support.latent[z.value != 0], minlength=z.support.d_sae)
