"""What a choice looks at: which latents, and how their numbers become scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..shapes import LatentMask, PerLatent
from .choose import Rule, TopK
from .latents import Support
from .scratch import scratch

if TYPE_CHECKING:
    from .preacts import PreActs

Score = Callable[[Tensor, slice | Tensor], Tensor]
ScoreAt = Callable[[Support, Tensor], Tensor]


@dataclass(frozen=True)
class Look:
    """Attributes: as the arguments of `PreActs.choose`; `index`: the latents `among`, as places."""

    index: Tensor | None
    among: LatentMask | None
    price: PerLatent | None
    boost: "PreActs | None"
    score: Score | None
    score_at: ScoreAt | None
    signed: bool
    tokens: Tensor | None = None  # which they are, if not all

    @property
    def plain(self) -> bool:
        return self.price is None and self.boost is None and self.score is None

    @property
    def latent_price(self) -> PerLatent | None:
        return self.price if self.price is None or self.index is None else self.price[self.index]

    def known_to_tiles(self, rule: Rule) -> bool:
        by_tiles = self.boost is None or (isinstance(rule, TopK) and self.boost.coarse == torch.int8)
        return by_tiles and self.score is None and not self.signed

    def scores(self, dense: Tensor, tokens: slice) -> Tensor:
        if self.price is not None:
            price = self.latent_price.to(dense.dtype)
            dense = torch.mul(dense, price, out=scratch(tuple(dense.shape), dense.dtype, dense.device))
        tokens = tokens if self.tokens is None else self.tokens[tokens]
        if self.boost is not None:
            by = self.boost.piece(tokens, dense.dtype).abs_()
            by = by if self.index is None else by[:, self.index]
            dense = torch.addcmul(dense, dense, by, out=by)
        if self.score is not None:
            dense = self.score(dense, tokens)
            dense = dense if self.among is None else dense.masked_fill(~self.among, 0)
        return dense.abs() if self.signed else dense
