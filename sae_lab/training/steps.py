"""What a training shows of itself: one small record per step, plain numbers only."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..saes import Batch, Objective
from ..shapes import Rows, Weights
from ..sparse import Latents, latent_totals, mesh, token_mean, tokens, total
from .member import Member


@dataclass(frozen=True)
class Record:
    """One SAE as last measured: weighted loss terms, FVU and L0 on the batch, dead latents, learning rate, `vitals`.

    `state` is what the variant itself moves: its scalar buffers by name, such as a threshold or a price's multiplier.
    """

    site: str
    variant: str
    terms: dict[str, float]
    fvu: float
    l0: float
    dead: int
    lr: float
    state: dict[str, float] = field(default_factory=dict)
    vitals: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One finished optimiser step. The numbers are those of step `measured`, the last that was measured.

    `terms`, `fvu`, `l0`, `dead` and `lr` are the first SAE's; `saes` has them for each. `rate` is tokens per second.
    """

    index: int  # steps done
    steps: int
    tokens: int  # tokens seen
    rate: float
    measured: int
    saes: tuple[Record, ...] = field(repr=False)
    note: str = ""

    terms = property(lambda self: self.saes[0].terms)
    fvu = property(lambda self: self.saes[0].fvu)
    l0 = property(lambda self: self.saes[0].l0)
    dead = property(lambda self: self.saes[0].dead)
    lr = property(lambda self: self.saes[0].lr)

    def row(self, member: int) -> dict[str, Any]:
        """A line for the log of one SAE's run."""
        record = asdict(self.saes[member])
        return {"step": self.index, "tokens": self.tokens, "rate": self.rate} | record


@torch.no_grad()
def measure(member: Member, batch: Batch, out: Objective, index: int) -> Record:
    """The numbers of a step, read off the device."""
    tok = tokens(len(batch.x))
    error = total((out.x_hat - batch.target).square().sum(), "data")
    spread = total((batch.target - token_mean(batch.target)).square().sum(), "data")
    return Record(
        site=member.site,
        variant=member.sae.name,
        terms={name: term.item() for name, term in out.terms.items()},
        fvu=(error / spread).item(),
        l0=float(out.z.l0),
        dead=int(total(batch.dead.sum(), "latents")),
        lr=member.lr(index) if member.adam else 0.0,
        state={name: b.item() for name, b in member.sae.named_buffers() if b.dim() == 0},
        vitals=vitals(batch.x, out.z, member.sae.W_dec, tok),
    )


@torch.no_grad()
def vitals(x: Rows, z: Latents, W_dec: Weights, tok: int) -> dict[str, float]:
    """What tells a batch that is led by few from one that is not, and whether its scale is what it should be.

    power: mean squared norm of the activations as the SAE sees them.
    loudest: share of their variance that is in the hundredth of tokens farthest from the mean.
    densest: largest share of tokens that one latent fires on.
    dense: share of all firings that are those of latents on more than half of the tokens.
    strongest: largest share that one latent has of the latents' energy, squares of activation times decoder norm.
    """
    far = (x - token_mean(x)).square().sum(1)
    fired = total(latent_totals(z.support, (z.value != 0).to(z.value)), "data")
    energy = total(latent_totals(z.support, z.value.square()), "data") * W_dec.square().sum(1)
    if m := mesh():
        far, fired, energy = m.joined(far, "data"), m.joined(fired, "latents"), m.joined(energy, "latents")
    shares = {
        "power": token_mean(x.square().sum(1)),
        "loudest": far.topk(-(-tok // 100)).values.sum() / far.sum(),
        "densest": fired.max() / tok,
        "dense": fired[fired > tok / 2].sum() / fired.sum(),
        "strongest": energy.max() / energy.sum(),
    }
    return {name: share.nan_to_num().item() for name, share in shares.items()}
