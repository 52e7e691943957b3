"""Whether a loaded SAE does what its checkpoint says: L0 and FVU on some thousand tokens, beside those of every way to
have read it wrongly.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from . import plots
from .metrics import fvu
from .models import LM
from .pretrained import Form, odd
from .pretrained.mistakes import MISTAKES
from .reading import fitting, held_out, own_text, walk
from .saes import SAE
from .shapes import Rows
from .sites import Site

CLEAR = 0.1  # by which a reading must be better than another to be told from it: a tenth of FVU, or of L0
SHARE = 0.1  # or as much of what the best reading is better by than the one that was loaded
TWICE = 2.0  # as far from the stated L0 as other text may be
AS_LOADED = "as loaded"


@dataclass(frozen=True)
class Verification:
    """What the tokens say of an SAE.

    Attributes:
        table: a row per reading, the best first: l0, fvu, and `cost`, log FVU and how far log L0 is from the stated.
        stated: what the checkpoint says of itself: l0, fvu.
        conventions: what was applied when it was loaded, in words.
        remarks: what its weights alone look like.
    """

    table: pd.DataFrame
    stated: dict[str, float]
    conventions: list[str]
    remarks: list[str]
    about: dict[str, Any]
    form: Form = field(repr=False)

    @property
    def best(self) -> list[str]:
        """The readings that cannot be told from the best, itself the first."""
        first, loaded = self.table.cost.iloc[0], self.table.cost[self.table.reading == AS_LOADED].item()
        return self.table.reading[self.table.cost < first + max(CLEAR, SHARE * (loaded - first))].tolist()

    @property
    def healthy(self) -> bool:
        """Whether it explains the activations at about the stated L0, and no other reading is clearly better."""
        return AS_LOADED in self.best and self.works and self.off < TWICE

    @property
    def off(self) -> float:
        """How many times L0 is what is stated, or the other way round; 1 where nobody states one."""
        l0, stated = self.table.l0[self.table.reading == AS_LOADED].item(), self.stated.get("l0")
        return max(l0 / stated, stated / max(l0, 1e-9)) if stated else 1.0

    @property
    def works(self) -> bool:
        """Whether the best reading explains anything."""
        return bool(self.table.fvu.iloc[0] < 1)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.works:
            return (
                f"No reading explains the activations (the best FVU is {self.table.fvu.iloc[0]:.2f}): wrong weights, "
                "another model, or another site."
            )
        best = list(dict.fromkeys(mistake_of(reading) for reading in self.best))
        others = [name for name in best if name != AS_LOADED]
        if AS_LOADED in best and self.off >= TWICE:
            return f"Suspect: L0 is {self.off:.1f} times off what is stated, and no known mistake explains it."
        if AS_LOADED in best:
            return "As published." if not others else f"As published; indistinguishable here from: {', '.join(others)}."
        if len(others) > 1:
            return f"Suspect, and indistinguishable here: {' or '.join(others)}."
        return f"Suspect: {others[0]}."

    @property
    def repaired(self) -> SAE:
        """The SAE by the best reading.

        Raises:
            ValueError: if that reads another layer: the weights are right then, and site= is to be given.
        """
        best = self.table.reading.iloc[0]
        found = [form for name, form, _ in _readings(self.form, self.about["scale"], {}) if name == best]
        if not found:
            raise ValueError(
                f"The best reading is {best!r}: nothing is to be repaired. Give that site to what reads it."
            )
        return found[0].sae()

    @property
    def figure(self):
        """FVU and L0 of every reading (plotly)."""
        return plots.readings(self.table, self.stated.get("l0"))

    def to_json(self) -> dict[str, Any]:
        rows = self.table.drop(columns="cost").to_dict("records")
        said = {"verdict": self.verdict, "healthy": self.healthy, "stated": self.stated, "about": self.about}
        return said | {"conventions": self.conventions, "remarks": self.remarks, "readings": rows}

    def __repr__(self) -> str:
        row = self.table.set_index("reading").loc[AS_LOADED]
        stated = f" (stated {self.stated['l0']:.0f})" if "l0" in self.stated else ""
        said = "; ".join([*self.conventions, *self.remarks]) or "nothing to apply"
        on = f"on {self.about['tokens']:,} tokens"
        return f"{self.verdict} L0 {row.l0:.1f}{stated}, FVU {row.fvu:.3f} {on}. Applied: {said}."


@torch.no_grad()
def verify(
    sae: SAE,
    lm: LM,
    *,
    site: str | Site | None = None,
    text: Any = None,
    tokens: int = 4096,
    l0: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Verification:
    """Tries an SAE on text as it was loaded, and as it would have been by each of `MISTAKES` undone.

    Args:
        tokens: how many are read, special ones left out.
        l0: mean L0 of its paper or page, where the checkpoint does not say it.
        text, options: as in `evaluate`.

    Raises:
        ValueError: if nobody says where the SAE reads, or the model has another width there.
    """
    site, (text, options) = fitting(sae, lm, site), own_text(sae, text, options)
    neighbours = {step: near for step in (-1, 1) if (near := _near(site, step, lm)) is not None}
    sites = sorted({site, site.target, *neighbours.values()}, key=lambda s: s.order)
    pages = list(walk(lm, held_out(lm, text, "test", seed, **options), sites, tokens, sae))
    x = {s: torch.cat([page.acts[s] for page in pages])[:tokens] for s in sites}
    form, stated = Form.of(sae), dict(sae.origin.get("stated", {})) | ({"l0": l0} if l0 else {})
    scale = math.sqrt(sae.cfg.d_in) / x[site].norm(dim=1).mean().item()
    rows = []
    for name, other, shift in _readings(form, scale, neighbours):
        at = neighbours[shift] if shift else site
        rows.append((name, *_measure(other.sae().to(x[at].device), x[at], x[at if shift else site.target])))
    table = pd.DataFrame(rows, columns=["reading", "l0", "fvu"])
    table["cost"] = [_cost(row.l0, row.fvu, stated.get("l0")) for row in table.itertuples()]
    table = table.sort_values("cost", kind="stable", ignore_index=True)
    about = {"site": str(site), "model": lm.name, "tokens": len(x[site]), "scale": scale}
    return Verification(table, stated, list(sae.origin.get("conventions", [])), odd(form), about, form)


def _readings(form: Form, scale: float, neighbours: dict[int, Site]) -> Iterator[tuple[str, Form, int]]:
    """(name, form, by how many layers elsewhere): the SAE as it is, and with each mistake undone."""
    yield AS_LOADED, form, 0
    for mistake in MISTAKES:
        for i, undo in enumerate(mistake.undo):
            found = undo(form, scale)
            if found is not None:
                yield mistake.name + (f" ({i + 1})" if len(mistake.undo) > 1 else ""), found, 0
        for step in mistake.sites:
            if step in neighbours:
                yield f"{mistake.name} ({neighbours[step]})", form, step


def mistake_of(reading: str) -> str:
    """The name of the mistake, without which of its ways back it was."""
    return next((m.name for m in MISTAKES if reading.startswith(m.name)), reading)


def _near(site: Site, step: int, lm: LM) -> Site | None:
    return (
        Site(f"L{site.layer + step}{site.part}") if 0 <= site.layer + step < lm.n_layers and site.part != "TC" else None
    )


def _measure(sae: SAE, x: Rows, y: Rows) -> tuple[float, float]:
    """(mean L0, FVU)."""
    z = sae.encode(x)
    return float(z.l0), fvu(sae.reconstruct(z, x), y)


def _cost(l0: float, error: float, stated: float | None) -> float:
    """log FVU, and by how much L0 is off in logarithms."""
    off = abs(math.log(max(l0, 1e-3) / stated)) if stated else 0.0
    return math.log(max(error, 1e-9)) + off if math.isfinite(error) else math.inf
