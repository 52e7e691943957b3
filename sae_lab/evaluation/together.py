"""Several SAEs spliced into one run of the model: what they cost together, beside what each costs alone.

An SAE behind another reads what the earlier splice left. Transcoders are spliced like any other SAE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import plots
from ..intervals import DocSums, Estimate
from ..models import LM
from ..reading import Numbers, held_out, own_text, pages
from ..saes import SAE
from ..sites import Site
from .numbers import COST, MEANS, costs, fitting, substitutes

TOGETHER, EXCESS = "together", "beyond the sum"


@dataclass(frozen=True)
class Together:
    """What splices cost.

    Attributes:
        numbers: by site, and under "together", each number with its interval. Zeros stand at the same sites as SAEs.
        excess: what the splice of all costs beyond the sum of what each costs alone.
    """

    numbers: dict[str, dict[str, Estimate]]
    excess: dict[str, Estimate]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row per number and splice; last what all cost beyond the sum of each alone."""
        rows = [(name, at, e.value, e.low, e.high) for at, of in self.numbers.items() for name, e in of.items()]
        rows += [(name, EXCESS, e.value, e.low, e.high) for name, e in self.excess.items()]
        return pd.DataFrame(rows, columns=["number", "spliced", "value", "low", "high"])

    @property
    def figure(self):
        """A panel per number, a mark per splice (plotly)."""
        shown = self.table.query("number in ('ce_increase', 'ce_recovered', 'kl', 'kl_score')")
        return plots.numbers(shown, "spliced", {"spliced": "SAE spliced in", **MEANS})

    def to_json(self) -> dict[str, Any]:
        found = {at: {name: e.to_json() for name, e in of.items()} for at, of in self.numbers.items()}
        return found | {EXCESS: {name: e.to_json() for name, e in self.excess.items()}, "about": self.about}

    def __repr__(self) -> str:
        alone = ", ".join(f"{at} {of['ce_increase']}" for at, of in self.numbers.items() if at != TOGETHER)
        every, excess = self.numbers[TOGETHER]["ce_increase"], self.excess["ce_increase"]
        return f"Spliced together: ce increase {every} nats per token; alone: {alone}; {EXCESS} {excess}"


def evaluate_together(
    saes: Sequence[SAE],
    lm: LM,
    *,
    sites: Sequence[str | Site] | None = None,
    text: Any = None,
    split: str = "test",
    tokens: int = 32_768,
    seed: int = 0,
    **options: Any,
) -> Together:
    """Splices several SAEs of one model at once.

    Args:
        sites: of each SAE; default: where it was trained.
        text: as in `evaluate`; default: the text of the first.
        tokens: to be run at least, if the text has so many: with each SAE, with all, and with zeros instead.

    Raises:
        ValueError: fewer than two SAEs, two that write the same place, and as `evaluate`.
    """
    if len(saes) < 2 or (sites is not None and len(sites) != len(saes)):
        raise ValueError(f"{len(saes)} SAEs, sites={sites}: give two SAEs at least, and as many sites as SAEs.")
    found = [fitting(sae, lm, site) for sae, site in zip(saes, sites or [None] * len(saes))]
    if len({site.target for site in found}) < len(found):
        raise ValueError(f"SAEs at {', '.join(found)}: two write the same place. Splice one of them at a time.")
    text, options = own_text(saes[0], text, options)
    at = dict(zip(found, saes))
    groups = {str(site): {site: sae} for site, sae in at.items()} | {TOGETHER: at}
    sums, numbers = {name: DocSums() for name in groups}, Numbers()
    for block, keep in pages(held_out(lm, text, split, seed, **options), tokens, lm.at_once):
        clean = lm.clean(block.ids, block.mask)
        for name, group in groups.items():
            counts, columns = costs(lm, block.ids, block.mask, keep, substitutes(group, keep), clean)
            sums[name].add(numbers(block.doc[counts]), **columns)
    about = {"sites": list(map(str, found)), "split": split, "tokens": int(sums[TOGETHER].sums["n"].sum())}
    about |= {"documents": sums[TOGETHER].docs, "model": lm.name, "seed": seed}
    numbers = {name: {number: of.estimate(f) for number, f in COST.items()} for name, of in sums.items()}
    return Together(numbers, _excess(sums), about)


def _excess(sums: dict[str, DocSums]) -> dict[str, Estimate]:
    """The splice of all less the sum of each alone, over the same documents."""
    whole = sums[TOGETHER].sums
    alone = [of.sums for name, of in sums.items() if name != TOGETHER]
    beyond = DocSums()
    beyond.add(
        np.arange(sums[TOGETHER].docs),
        n=whole["n"],
        ce_increase=whole["spliced"] - whole["clean"] - sum(of["spliced"] - of["clean"] for of in alone),
        kl=whole["kl_spliced"] - sum(of["kl_spliced"] for of in alone),
    )
    return {name: beyond.estimate(lambda s, name=name: s[name] / s["n"]) for name in ("ce_increase", "kl")}
