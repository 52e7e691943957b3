"""Sparse probing: how well 1, 2 or 5 latents tell a label, beside what raw activations and other dictionaries do.

As SAEBench: the k units whose means differ most between rows with and without the label, and a logistic regression on
them; units and regression come from one part of the text and are scored on the other. F1 is at the natural rate (cut
where it is best on the first part), accuracy is balanced.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import sparse

from .. import plots
from ..intervals import Estimate, draws, interval
from ..labelled import MANY, Examples, Labels, read_labels, read_parts
from ..models import LM
from ..probes import ROWS, accuracy_of, f1_of, fit, mean_differences, tally
from ..reading import home, walk
from ..saes import SAE, build
from ..sites import Site

POSITIVES = 20  # rows with and without a label that each part must have
ALL = 0  # stands for k: every unit


@dataclass(frozen=True)
class Probing:
    """Scores of probes on text they were not made on.

    Attributes:
        tallies: per kind of unit and k (0: all of them), counts per document and label: see `probes.tally`.
        units: per kind of unit and label the chosen ones, best first.
        left_out: labels with too few rows to probe for, and how many.
    """

    labels: tuple[str, ...]
    tallies: dict[tuple[str, int], Float[np.ndarray, "docs labels 4"]]
    accuracies: dict[tuple[str, int], Float[np.ndarray, "docs labels 4"]]
    units: dict[str, np.ndarray]
    left_out: dict[str, int]
    about: dict[str, Any]

    def mean(self, units: str = "latents", k: int = 1, score: str = "f1") -> Estimate:
        """Mean "f1" or balanced "accuracy" over labels."""
        found, of = (self.tallies, f1_of) if score == "f1" else (self.accuracies, accuracy_of)
        if (units, k) not in found:
            known = ", ".join(f"{u} {k}" for u, k in found)
            raise ValueError(f"No probe of {k} {units}. There are: {known} (0: all units).")
        counts = found[units, k]
        sums = np.einsum("wd,dlc->wlc", draws(len(counts), 300), counts, optimize=True)
        return interval(np.nanmean(of(sums), axis=1))

    @property
    def chance(self) -> float:
        """Mean F1 of saying yes everywhere."""
        counts = next(iter(self.tallies.values())).sum(0)
        return float(np.mean(2 * counts[:, 2] / (counts[:, 2] + counts[:, 3])))

    @property
    def table(self) -> pd.DataFrame:
        """Mean scores over labels with their intervals, one row per kind of unit and k."""
        rows = []
        for units, k in self.tallies:
            f1, accuracy = self.mean(units, k), self.mean(units, k, "accuracy")
            row = {"units": units, "k": k or "all", "f1": f1.value, "f1_low": f1.low, "f1_high": f1.high}
            rows.append(row | {f"accuracy{s}": getattr(accuracy, n) for s, n in ENDS.items()})
        return pd.DataFrame(rows)

    @property
    def by_label(self) -> pd.DataFrame:
        """F1 per label, a column per kind of unit and k, and the latents that were chosen."""
        counts = next(iter(self.tallies.values())).sum(0)
        columns = {"label": self.labels, "rows": counts[:, 2].astype(int), "latents": self.units["latents"].tolist()}
        columns |= {f"{u} {k or 'all'}": f1_of(t.sum(0)) for (u, k), t in self.tallies.items()}
        return pd.DataFrame(columns)

    @property
    def figure(self):
        """Mean F1 against k, a line per kind of unit (plotly)."""
        return plots.probed(self.table, self.chance)

    def to_json(self) -> dict[str, Any]:
        rows = self.table.to_dict("records")
        return {"scores": rows, "chance": self.chance, "left_out": self.left_out, "about": self.about}

    def __repr__(self) -> str:
        a, shown = self.about, [u for u in dict.fromkeys(u for u, _ in self.tallies) if u != "raw"]
        k = min(k for _, k in self.tallies if k)
        scores = ", ".join(f"{units} {self.mean(units, k)}" for units in shown)
        return (
            f"Probing at {a['site']} for {len(self.labels)} labels of {a['text']}, one row per {a['row']}: "
            f"mean F1 with {k} unit: {scores}; raw activations {self.mean('raw', ALL)}, chance {self.chance:.3f}"
        )


ENDS = {"": "value", "_low": "low", "_high": "high"}


def probe(
    sae: SAE,
    lm: LM,
    labels: Any = "world",
    *,
    column: str | Sequence[str] = "label",
    names: Iterable[str] | None = None,
    pooled: bool | None = None,
    site: str | Site | None = None,
    k: Sequence[int] = (1, 2, 5),
    tokens: int = 50_000,
    untrained: tuple[SAE, LM] | None = None,
    seed: int = 0,
    **options: Any,
) -> Probing:
    """Probes for labels with a few latents; beside them raw activations, principal directions and random ones.

    Args:
        labels, column, names, pooled: as in `labelled.read_labels`; of the world, by default, the tree's second level.
        tokens: of the world, in each of the two parts; labelled text of your own is read whole.
        untrained: an SAE of this shape and the untrained model it was trained on: `load_model("untrained:...")`.
        options: passed on to `reading.held_out`: context, documents ...

    Raises:
        ValueError: as `read_labels`; no label has enough rows; a k or an SAE that does not fit.
    """
    site = home(sae, site)
    _check(sae, k, untrained)
    made = read_labels(labels, column, _second_level() if labels == "world" and names is None else names, pooled)
    tokens = tokens if made.about["text"] == "world" else MANY
    first = next(walk(lm, made.blocks(lm, "fit", seed, **options), [site], 1, sae)).acts[site]
    saes = {"latents": sae} | _baselines(sae, first, seed)
    parts = read_parts(lm, site, made, saes, tokens, seed, **options)
    kept, left_out = enough(made, parts)
    found = _scored(parts, kept, {"raw": ALL} | dict.fromkeys(saes), k, seed)
    if untrained:
        other, model = untrained
        there = read_parts(model, site, made, {"untrained": other}, tokens, seed, **options)
        for whole, more in zip(found, _scored(there, kept, {"untrained": None}, k, seed)):
            whole.update(more)
    about = {"site": str(site), "row": "document" if made.pooled else "token", "model": lm.name, "seed": seed}
    about |= made.about | {"rows": [len(e.doc) for e in parts], "documents": [e.docs for e in parts]}
    return Probing(tuple(made.names[i] for i in kept), *found, left_out, about)


def _check(sae: SAE, k: Sequence[int], untrained: Any) -> None:
    if not k or min(k) < 1 or max(k) > sae.cfg.d_sae:
        raise ValueError(f"k={tuple(k)}: probes take 1 to {sae.cfg.d_sae} latents, as many as the SAE has.")
    if untrained and untrained[0].cfg.d_sae != sae.cfg.d_sae:
        raise ValueError(f"untrained= has {untrained[0].cfg.d_sae} latents, this SAE {sae.cfg.d_sae}: train one alike.")


def _second_level() -> list[str]:
    """The world's concepts one step below the roots, which are neither nearly everywhere nor very rare."""
    from ..tiny import world

    return [c.name for c in world.concepts() if c.depth == 1 and 1e-3 < c.density < 0.5]


def enough(labels: Labels, parts: list[Examples]) -> tuple[list[int], dict[str, int]]:
    """(labels that both parts have enough rows with and without, the others with the rows they have).

    Raises:
        ValueError: if there is none of the first.
    """
    rare = np.min([np.minimum(e.counts, len(e.doc) - e.counts) for e in parts], axis=0)
    kept = [i for i, n in enumerate(rare) if n >= POSITIVES]
    left_out = {labels.names[i]: int(n) for i, n in enumerate(rare) if n < POSITIVES}
    if not kept:
        best = max(left_out, key=left_out.get)
        raise ValueError(
            f"Too few positives: no label has {POSITIVES} rows with and {POSITIVES} without it in both parts of the "
            f"text ({best!r} comes nearest with {left_out[best]}). Give more labelled text."
        )
    return kept, left_out


def _baselines(sae: SAE, x: torch.Tensor, seed: int) -> dict[str, SAE]:
    """Principal directions and random ones, as many active as the SAE has on x."""
    k = max(1, min(512, round(float(sae.encode(x).l0))))
    pca = build("pca", d_in=sae.cfg.d_in, k=min(k, 2 * sae.cfg.d_in)).to(x.device)
    pca.calibrate([x])
    chance = build("random", d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, k=k, seed=seed).to(x.device)
    chance.prepare(x, x)
    return {"pca": pca, "random": chance}


def _scored(parts: list[Examples], kept: list[int], kinds: dict[str, Any], k: Sequence[int], seed: int):
    """(tallies for F1, tallies for accuracy, units) of `Probing`."""
    learnt, held = parts
    f1s, accuracies, units = {}, {}, {}
    for kind in kinds:
        z = [e.acts if kind == "raw" else e.codes[kind].tocsc() for e in parts]
        order = np.argsort(-np.abs(mean_differences(z[0], learnt.labels[:, kept])), axis=1, kind="stable")
        units[kind] = order[:, : max(k)]
        for n in [*k, ALL] if kind == "raw" else k:
            both = []
            for i, label in enumerate(kept):
                columns = order[i, :n] if n else slice(None)
                x, x_held = (_dense(part[:, columns]) for part in z)
                found = fit(x, learnt.truth(label), ROWS, seed)
                score, y = found(x_held), held.truth(label)
                both.append([tally(score > cut, y, held.doc, held.docs) for cut in (found.cut, 0.0)])
            f1s[kind, n], accuracies[kind, n] = np.moveaxis(np.array(both), (0, 1), (2, 0))
    return f1s, accuracies, units


def _dense(columns: "np.ndarray | sparse.csc_array") -> np.ndarray:
    return columns.toarray() if sparse.issparse(columns) else columns
