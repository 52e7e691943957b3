"""What can be done to latents while the model reads and writes: five modes, each a difference that is added to x.

What the SAE does not explain of x so stays where it is. Several pushes read the same x, and their differences add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..models import LM, Edit
from ..reading import fitting, held_out, own_text, walk
from ..saes import SAE
from ..shapes import Acts, Direction, PerLatent
from ..sites import Site

MODES = ("add", "clamp", "ablate", "orthogonal", "cap")
POSITIONS = ("all", "generated", "last")
READ = 20_000  # validation tokens on which latents are measured

Recipe = Callable[[float], tuple[Edit, ...]]  # a multiple of the strengths -> the edits


@dataclass(frozen=True)
class Push:
    """One thing done to one latent: z its activation, W its decoder row, d that row at length 1, m the unit.

    add        x + s m d
    clamp      x + (s m - z) W
    ablate     clamp to 0
    orthogonal x - (x.d) d + s m d
    cap        x - max(0, x.d - s m) d

    Attributes:
        strength: s.
        unit: m; None: the latent's maximum on validation text. 1.0 makes the strength an absolute number.
        positions: "all", "generated", "last" (of the prompt), or places of the prompt such as "3:7" (a BOS is 0).
    """

    latent: int
    mode: str = "add"
    strength: float = 1.0
    unit: float | None = None
    positions: str = "all"

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"No mode {self.mode!r} of steering. Known: {', '.join(MODES)}.")
        if not isfinite(self.strength):
            raise ValueError(f"strength={self.strength} of latent {self.latent} must be a finite number.")
        if self.unit is not None and not 0 < self.unit < float("inf"):
            raise ValueError(
                f"unit={self.unit} of latent {self.latent} must be above 0 and finite; 1.0 counts absolutely."
            )
        _ = self.where

    @property
    def where(self) -> dict[str, Any]:
        """The positions as an `Edit` has them."""
        known = {"all": {}, "generated": {"prompt": False}, "last": {"prompt": slice(-1, None), "new": False}}
        if self.positions in known:
            return known[self.positions]
        try:
            first, last = (int(end) if end.strip() else None for end in self.positions.split(":"))
        except ValueError:
            raise ValueError(
                f"No positions {self.positions!r}. Known: {', '.join(POSITIONS)}, or places of the prompt: '3:7'."
            ) from None
        return {"prompt": slice(first, last), "new": False}

    @property
    def reads(self) -> bool:
        """Whether it looks at the latent's activation."""
        return self.mode in ("clamp", "ablate")


class Activity(NamedTuple):
    """What latents do on validation text.

    Attributes:
        typical: mean over the tokens on which a latent fires; 0 where it never does.
        maximum: the largest; 0 where it never fires.
        spread: standard deviation over all tokens.
    """

    typical: PerLatent
    maximum: PerLatent
    spread: PerLatent


@torch.no_grad()
def activity(
    sae: SAE,
    lm: LM,
    site: str | Site | None = None,
    *,
    text: Any = None,
    tokens: int = READ,
    seed: int = 0,
    **options: Any,
) -> Activity:
    """How strongly each latent fires, on validation text: by default of what the SAE was trained on."""
    site = fitting(sae, lm, site)
    total, square, times, largest = torch.zeros(4, sae.cfg.d_sae, dtype=torch.float64)
    text, options = own_text(sae, text, options)
    read = 0
    for page in walk(lm, held_out(lm, text, "validation", seed, **options), [site], tokens, sae):
        z = sae.encode(page.acts[site])
        on = z.value > 0
        latent, value = z.support.latent[on].long().cpu(), z.value[on].double().cpu()
        total.index_add_(0, latent, value)
        square.index_add_(0, latent, value.square())
        largest.scatter_reduce_(0, latent, value, "amax")
        times += torch.bincount(latent, minlength=len(times))
        read += len(page.doc)
    variance = square / read - (total / read).square()
    return Activity(total / times.clamp(min=1), largest, variance.clamp(min=0).sqrt())


def typical_activation(sae: SAE, lm: LM, site: Site, **reading: Any) -> PerLatent:
    """Mean activation of each latent over the validation tokens on which it fires; 0 where it never does."""
    return activity(sae, lm, site, **reading).typical


def direction(sae: SAE, latent: int) -> Direction:
    """What one unit of a latent's activation adds to the model's activations.

    Raises:
        ValueError: a latent the SAE does not have.
    """
    if not 0 <= latent < sae.cfg.d_sae:
        raise ValueError(f"No latent {latent}: this SAE has latents 0 to {sae.cfg.d_sae - 1}.")
    return sae.W_dec[latent].detach()


def unit_direction(sae: SAE, latent: int) -> Direction:
    """A latent's decoder row at length 1.

    Raises:
        ValueError: a latent the SAE does not have, or whose row is all zeros.
    """
    row = direction(sae, latent).float()
    if not row.any():
        raise ValueError(f"The decoder row of latent {latent} is all zeros: there is no direction to steer along.")
    return row / row.norm()


class Reading:
    """Activations of some latents, [..., latents]; where they do not compete, at the price of their encoder rows.

    Where the SAE scales tokens one by one: how much of its row each adds, and last what 1.0 adds, [..., latents + 1].
    """

    def __init__(self, sae: SAE, latents: Sequence[int]):
        self.sae, self.latents = (sae.only(latents), range(len(latents))) if sae.alone else (sae, latents)

    @torch.no_grad()
    def __call__(self, x: Acts) -> Float[Tensor, "*lead latents"]:
        weight = self.sae.W_dec
        x, device = x.to(weight.device, weight.dtype), x.device
        z = self.sae.encode(x)
        out = weight.new_zeros(z.support.tok, len(self.latents))
        for column, latent in enumerate(self.latents):
            on = z.support.latent == latent
            out[z.support.token[on], column] = z.value[on]
        out = out.view(*x.shape[:-1], -1)
        if self.sae.cfg.per_token != "none":
            out = torch.cat([out, torch.ones_like(out[..., :1])], -1) * self.sae.token_scale(x)[1]
        return out.to(device)


def in_units(
    sae: SAE, lm: LM, pushes: Sequence[Push], site: Site, known: Activity | None = None, **reading: Any
) -> list[Push]:
    """The pushes, each with its unit; latents are measured if one of them needs that.

    Raises:
        ValueError: a latent the SAE does not have; one whose maximum is 0, which has no multiples.
    """
    for push in pushes:
        unit_direction(sae, push.latent)
    if all(p.unit is not None or p.mode == "ablate" for p in pushes):
        return list(pushes)
    most = (known or activity(sae, lm, site, **reading)).maximum
    for push in pushes:
        if push.unit is None and push.mode != "ablate" and not most[push.latent]:
            raise ValueError(
                f"Latent {push.latent} never fires on validation text: its maximum is 0, and multiples of that mean "
                "nothing. Take another latent, or unit=1.0 to count in the SAE's own units."
            )
    return [p if p.unit is not None or p.mode == "ablate" else replace(p, unit=most[p.latent].item()) for p in pushes]


def recipe(sae: SAE, site: Site, pushes: Sequence[Push]) -> Recipe:
    """Edits that do what the pushes (which know their units) say, at any multiple of their strengths."""
    latents = sorted({p.latent for p in pushes if p.reads})
    sees = Reading(sae, latents) if latents else None

    def at(scale: float) -> tuple[Edit, ...]:
        return tuple(_edit(sae, site, p, scale * p.strength * (p.unit or 0.0), sees, latents) for p in pushes)

    return at


def _edit(sae: SAE, site: Site, push: Push, aim: float, sees: Reading | None, latents: list[int]) -> Edit:
    plain = sae.cfg.per_token == "none"
    if push.reads:
        column, aim = latents.index(push.latent), 0.0 if push.mode == "ablate" else aim
        strength = lambda z: (aim if plain else aim * z[..., -1]) - z[..., column]  # noqa: E731
        return Edit(site, direction(sae, push.latent), strength, **push.where, sees=sees)
    d = unit_direction(sae, push.latent)
    along = lambda x: x.float() @ d.to(x.device)  # noqa: E731
    there = lambda x: aim if plain else aim * sae.token_scale(x.float())[1][..., 0]  # noqa: E731
    strength = {
        "add": aim if plain else there,
        "orthogonal": lambda x: there(x) - along(x),
        "cap": lambda x: -(along(x) - there(x)).relu(),
    }[push.mode]
    return Edit(site.target, d, strength, **push.where)
