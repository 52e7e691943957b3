"""Effect against KL: what an intervention does to texts for what it does to the model, and two of them compared at
equal KL. Strengths of different SAEs do not compare; how far the predictions move does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from .. import plots
from ..intervals import Estimate, draws, interval, plain_json

PerText = Float[np.ndarray, "strengths prompts"]
Drawn = Float[np.ndarray, "draws strengths"]
POINTS = 5  # values of KL at which two curves are shown
FINE = 41  # over which their difference is averaged


@dataclass(frozen=True, eq=False)
class Curve:
    """What one intervention does at several strengths, text by text.

    Attributes:
        found: 1 where a text shows the concept, else 0.
        sums: over a text's new tokens: "tokens" how many, "kl" of the clean model's predictions to the steered ones and
            "ce" under the clean model in nats, "grams" of four tokens and how many of them are "repeated".
    """

    name: str
    concept: str
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    found: PerText
    sums: dict[str, PerText]

    def effect(self, weights: Float[np.ndarray, "draws prompts"]) -> Drawn:
        """Share of texts with the concept, for each drawing of the prompts."""
        return weights @ self.found.T / weights.sum(1, keepdims=True)

    def mean(self, of: str, per: str, weights: Float[np.ndarray, "draws prompts"]) -> Drawn:
        """One sum over another, for each drawing of the prompts; NaN where there is nothing to divide by."""
        total = weights @ self.sums[per].T
        return np.divide(weights @ self.sums[of].T, total, out=np.full(total.shape, np.nan), where=total > 0)

    @property
    def table(self) -> pd.DataFrame:
        """A row per strength: each number with its 95% interval over prompts."""
        weights, n = draws(len(self.prompts), 1000), len(self.prompts)
        numbers = {name: self.mean(of, per, weights) for name, of, per in NUMBERS}
        rows = []
        for i, strength in enumerate(self.strengths):
            estimates = {"effect": Estimate.share(int(self.found[i].sum()), n)}
            for name, drawn in numbers.items():
                known = np.isfinite(drawn[0, i])
                estimates[name] = interval(drawn[:, i]) if known else Estimate(*[float("nan")] * 3)
            row = {"intervention": self.name, "strength": strength, "texts": n}
            for name, e in estimates.items():
                row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
            rows.append(row)
        return pd.DataFrame(rows)


NUMBERS = (("kl", "kl", "tokens"), ("ce", "ce", "tokens"), ("repetition", "repeated", "grams"))


@dataclass(frozen=True, eq=False)
class Frontier:
    """Two interventions at equal KL.

    Attributes:
        table: at some values of KL the share of texts with the concept that each can reach for it, and the first's less
            the second's with its 95% interval over prompts.
        difference: the mean of that over all KL that both measured.
        curves: the tables of both, one under another.
    """

    table: pd.DataFrame
    difference: Estimate
    curves: pd.DataFrame
    about: dict[str, Any]

    @property
    def figure(self):
        """Both curves: share of texts with the concept against KL (plotly)."""
        return plots.frontier(self.curves)

    def to_json(self) -> dict[str, Any]:
        rows = {"table": self.table.to_dict("records"), "curves": self.curves.to_dict("records")}
        return plain_json({"about": self.about, "difference": self.difference.to_json()} | rows)

    def __repr__(self) -> str:
        a = self.about
        said = f"{a['a']} less {a['b']} on {a['concept']} at equal KL"
        return f"{said} ({a['low']:.3g} to {a['high']:.3g}): {self.difference}"


def frontier(a: Any, b: Any, at: Sequence[float] | None = None) -> Frontier:
    """How much more of the target effect one intervention reaches than another, for the same KL.

    A curve's frontier joins those of its strengths that no other beats at less KL; resampled prompts are the same for
    both.

    Args:
        a, b: `Doses` (their first intervention counts) or one of their curves, `found["random direction"]`.
        at: values of KL in nats per new token; default: five over what both measured.

    Raises:
        ValueError: other prompts or concepts; KL ranges that have nothing in common; an `at` outside them.
    """
    a, b = (c if isinstance(c, Curve) else c.curve for c in (a, b))
    if (a.concept, a.prompts) != (b.concept, b.prompts):
        raise ValueError(
            f"{a.name} and {b.name} wrote on other prompts, or of other concepts: measure both on the same."
        )
    weights = draws(len(a.prompts), 1000)
    kls, effects = zip(*((c.mean("kl", "tokens", weights), c.effect(weights)) for c in (a, b)))
    reach = [(float(np.nanmin(kl[0])), float(np.nanmax(kl[0]))) for kl in kls]
    low, high = max(r[0] for r in reach), min(r[1] for r in reach)
    if not low <= high:
        (a0, a1), (b0, b1) = reach
        raise ValueError(
            f"No KL in common: {a.name} moves the predictions by {a0:.3g} to {a1:.3g} nats per token, {b.name} by "
            f"{b0:.3g} to {b1:.3g}. Measure more strengths, so that they meet."
        )
    at = np.linspace(low, high, POINTS if low < high else 1) if at is None else np.asarray(at, float)
    if odd := [k for k in at.tolist() if not low <= k <= high]:
        raise ValueError(f"at={odd[0]:.3g} is not between {low:.3g} and {high:.3g}, the KL that both measured.")
    grid = np.concatenate([at, np.linspace(low, high, FINE)])
    of = [np.array([reached(k, e, grid) for k, e in zip(kl, effect)]) for kl, effect in zip(kls, effects)]
    gap = of[0] - of[1]
    rows = []
    for i, k in enumerate(at.tolist()):
        e = interval(gap[:, i])
        row = {"kl": k, "a": of[0][0, i], "b": of[1][0, i], "difference": e.value}
        rows.append(row | {"difference_low": e.low, "difference_high": e.high})
    about = {"a": a.name, "b": b.name, "concept": a.concept, "texts": len(a.prompts), "low": low, "high": high}
    both = pd.concat([c.table.assign(intervention=f"{x}: {c.name}") for x, c in zip("ab", (a, b))], ignore_index=True)
    return Frontier(pd.DataFrame(rows), interval(gap[:, len(at) :].mean(1)), both, about)


def reached(
    kl: Float[np.ndarray, " strengths"], effect: Float[np.ndarray, " strengths"], at: Float[np.ndarray, " at"]
) -> Float[np.ndarray, " at"]:
    """The effect on the frontier of some (KL, effect) at values of KL; flat beyond its ends."""
    known = np.isfinite(kl)
    if not known.any():
        return np.full(len(at), np.nan)
    order = np.lexsort((-effect[known], kl[known]))
    kl, effect = kl[known][order], effect[known][order]
    best = np.maximum.accumulate(effect)
    unbeaten = np.diff(best, prepend=-np.inf) > 0
    return np.interp(at, kl[unbeaten], effect[unbeaten])
