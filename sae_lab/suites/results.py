"""What a suite found: a row per variant and width, a row per pair of widths, and their pictures, from one JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import plots
from ..intervals import Estimate, plain_json
from ..runs import Damaged, read_json, write_json
from ..sweeps import Asked, Plan, Sweep
from .studies import named

OVER_PAIRS = ("mcc", "mcc_alive", "mcc_weighted", "shared")  # of seeds, with what chance gives
OVER_SEEDS = {
    "absorption": ("absorption", "absorption"),
    "concept_f1": ("concepts", "latents"),
    "random_f1": ("concepts", "random"),
    "neurons_f1": ("concepts", "neurons"),
}
KINDS = {
    "shared": ("children", "shared"),
    "split": ("children", "split"),
    "new": ("children", "new"),
    "parents_split": ("parents", "split"),
}
SHOWN = {"mcc": "PW-MCC", "shared": "shared", "absorption": "absorption", "concept_f1": "concept F1", "fvu": "FVU"}
CHANCE = {"mcc": "mcc_chance", "shared": "shared_chance", "concept_f1": "random_f1"}


@dataclass(frozen=True, eq=False)
class Suite:
    """The studies of a sweep; `Suite.read` knows them again from what `save` wrote, without SAEs or model.

    Attributes:
        sweep: L0, FVU, CE recovered and living latents of each SAE.
        found: by study ("consistency", "validity", "absorption", "concepts", "splitting") and by what was studied.
        parents: concepts whose absorption was refused, with the number of SAEs and a reason.
        tokens: that each study read of each split.
    """

    sweep: Sweep
    found: dict[str, dict[str, dict[str, Any]]]
    parents: dict[str, str]
    tokens: int

    @classmethod
    def load(cls, folder: str | Path, tokens: int) -> "Suite":
        """What there is so far in a suite's folder.

        Raises:
            FileNotFoundError: if it holds no sweep.
        """
        sweep, found = Sweep.load(folder), {}
        for path in sorted(Path(folder).glob(f"studies/{tokens}/*/*.json")):
            found.setdefault(path.parent.name, {})[path.stem] = read_json(path)
        rows = [row | {"run": Path(row["run"]).name} for row in sweep.rows]
        return cls(replace(sweep, folder=Path(), rows=rows), *_told_once(found), tokens)

    @classmethod
    def read(cls, path: str | Path) -> "Suite":
        """The suite that a JSON file holds.

        Raises:
            FileNotFoundError, Damaged: if there is none.
        """
        saved = read_json(Path(path))
        if not isinstance(saved, dict) or saved.get("kind") != "suite":
            raise Damaged(f"{str(path)!r} holds no suite. Give a file that Suite.save wrote, or a suite's suite.json.")
        sweep = Sweep(Plan.from_json(saved["plan"]), Path(), saved["saes"])
        return cls(sweep, saved["found"], saved["parents"], saved["tokens"])

    def save(self, path: str | Path) -> None:
        """Writes JSON that `read` reads: some 100 kB for 45 SAEs."""
        write_json(Path(path), self.to_json())

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per variant, k and d_sae: every number with its 95% interval, and what chance gives.

        Over seeds by Student's t; over pairs of seeds by jackknife. `matched`: every seed has the L0 asked for.
        """
        rows = []
        for row in self.sweep.summary.to_dict("records"):
            seeds = [a for a in self._saes.values() if a[:3] == (row["variant"], row["k"], row["d_sae"])]
            row["matched"] = row["matched"] == row.pop("total")
            row |= self._over_pairs(named(seeds[0]))
            for name, (study, number) in OVER_SEEDS.items():
                values = [_known(self._of(study, a.name).get(number, {}).get("value")) for a in seeds]
                row |= _spread(name, Estimate.mean([v for v in values if np.isfinite(v)]))
            rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def splits(self) -> pd.DataFrame:
        """One row per variant, k and pair of widths: shares of the wide SAE's latents, and of the narrow one's that
        split, each beside the same share between two seeds of the wide width (the null; jackknife over seeds).
        """
        groups: dict[tuple, list[dict]] = {}
        for found in self.found.get("splitting", {}).values():
            narrow, wide, *_ = (self._saes[name] for name in found["saes"])
            groups.setdefault((*narrow[:3], wide.d_sae), []).append(found)
        rows = []
        for (variant, k, small, large), links in sorted(groups.items()):
            links = [link for link in links if "refused" not in link]
            row = {"variant": variant, "k": k, "from": small, "to": large, "seeds": len(links)}
            for name, (side, kind) in KINDS.items():
                row |= _spread(name, _share(Estimate.mean([link[side][kind]["share"] for link in links])))
                nulls = {tuple(link["saes"][1:]): link[side][kind]["null"] for link in links if len(link["saes"]) > 2}
                row |= _spread(f"{name}_null", _share(_jackknifed(nulls)))
            rows.append(row)
        return pd.DataFrame(rows)

    @cached_property
    def validity(self) -> pd.DataFrame:
        """One row per variant, k, d_sae and score that needs no labels: its rank correlation with the F1 of the concept
        that a latent names, and the same beyond density, over so many latents of the first seed."""
        kinds = {named(asked): asked for asked in self._saes.values()}
        rows = [
            {"variant": kinds[name].variant, "k": kinds[name].k, "d_sae": kinds[name].d_sae, **row}
            for name, of in self.found.get("validity", {}).items()
            for row in of.get("spearman", ())
        ]
        numbers = [f"{beyond}{name}" for beyond in ("", "beyond_") for name in ("value", "low", "high")]
        table = pd.DataFrame(rows, columns=["variant", "k", "d_sae", "score", *numbers, "latents"])
        return table.astype(dict.fromkeys(numbers, float)).sort_values(["score", "variant", "d_sae"], ignore_index=True)

    @property
    def validity_figure(self):
        """Each score's mean rank correlation with concept F1 over variants and widths, the best first (plotly)."""
        kinds = {"alone": _means(self.validity, "value"), "beyond density": _means(self.validity, "beyond_value")}
        return plots.ranked(kinds, "score", "rank correlation with concept F1, mean over variants and widths")

    @property
    def refused(self) -> dict[str, str]:
        """Studies that gave no number, and SAEs that could not be trained, with the reason."""
        every = ((f"{study}/{name}", of) for study, each in self.found.items() for name, of in each.items())
        return self.sweep.failed | {name: of["refused"] for name, of in every if "refused" in of}

    @property
    def figure(self):
        """PW-MCC, shared, absorption, concept F1 and FVU over d_sae, with what chance gives (plotly)."""
        figure, widths = plots.numbers(pd.DataFrame(self._points()), "d_sae", {}, by="variant"), self.sweep.plan.d_sae
        ticks = {"tickvals": widths, "ticktext": [f"{d_sae:,}" for d_sae in widths]}
        return figure.update_xaxes(type="log", title_text="latents", minor={"showgrid": False}, **ticks)

    @property
    def splits_figure(self):
        """Shares of shared, split and new latents beside their nulls, which are open (plotly)."""
        rows = []
        for row in self.splits.to_dict("records"):
            pair = f"{row['from']:,} to {row['to']:,}"
            for name in ("shared", "split", "new"):
                for number, by in ((name, pair), (f"{name}_null", f"{pair}, null")):
                    where = {"number": name, "variant": row["variant"], "by": by, "matched": number == name}
                    rows.append(where | _point(row, number))
        figure = plots.numbers(pd.DataFrame(rows), "variant", {"variant": ""}, by="by")
        return figure.update_layout(scattermode="group", scattergap=0.5).update_xaxes(automargin=True)  # side by side

    def to_json(self) -> dict[str, Any]:
        return plain_json(
            {"kind": "suite", "plan": self.sweep.plan.to_json(), "tokens": self.tokens, "saes": self.sweep.rows}
            | {"found": self.found, "parents": self.parents}
            | {name: getattr(self, name).to_dict("records") for name in ("table", "splits")}
        )

    def __repr__(self) -> str:
        job, plan = self.sweep.plan.job, self.sweep.plan
        head = (
            f"Suite of {len(plan.saes)} SAEs at {job.site} of {job.model}, {job.train.tokens:,} tokens, {plan.seeds} "
        )
        rows = self.table[["variant", "k", "d_sae"]].assign(**{n: _told(self.table, n) for n in ("l0", *SHOWN)})
        rows["l0"] += np.where(self.table["matched"], "", " (not matched)")
        said = [f"refused: {name}: {why}" for name, why in self.refused.items()]
        return "\n".join([head + "seeds", rows.to_string(index=False), *said])

    @property
    def _saes(self) -> dict[str, Asked]:
        return {asked.name: asked for asked in self.sweep.plan.saes}

    def _of(self, study: str, name: str) -> dict[str, Any]:
        return self.found.get(study, {}).get(name, {})

    def _over_pairs(self, kind: str) -> dict[str, float]:
        row = {}
        for name in OVER_PAIRS:
            found = self._of("consistency", kind).get(name, {})
            row |= _spread(name, _estimate(found)) | {f"{name}_chance": _known(found.get("chance"))}
        return row

    def _points(self) -> Iterator[dict[str, Any]]:
        """The table for the picture, a row per number; what chance gives is the mean over variants."""
        for name, title in SHOWN.items():
            for row in self.table.to_dict("records"):
                yield {"number": title, **{k: row[k] for k in ("variant", "d_sae", "matched")}, **_point(row, name)}
            if name in CHANCE:
                for d_sae, value in self.table.groupby("d_sae")[CHANCE[name]].mean().items():
                    yield {"number": title, "variant": "chance", "d_sae": d_sae, "matched": True, "value": value}


def _means(validity: pd.DataFrame, number: str) -> pd.DataFrame:
    """A number's mean over variants and widths for each score, the best first."""
    of = validity.dropna(subset=number).groupby("score")[number]
    rows = [{"score": score, **Estimate.mean(values.tolist()).to_json()} for score, values in of]
    return pd.DataFrame(rows, columns=["score", "value", "low", "high"]).sort_values("value", ascending=False)


def _told_once(found: dict[str, dict]) -> tuple[dict[str, dict], dict[str, str]]:
    """The studies without what each says of the parents it left out, and that once for all SAEs."""
    said: dict[str, list[str]] = {}
    for of in found.get("absorption", {}).values():
        for parent, why in of.pop("left out", {}).items():
            said.setdefault(parent, []).append(why)
    return found, {parent: f"{len(why)} SAEs: {why[0]}" for parent, why in sorted(said.items())}


def _jackknifed(nulls: dict[tuple[str, ...], float]) -> Estimate:
    """The mean over pairs of seeds, with its interval over seeds."""
    seeds = sorted({seed for pair in nulls for seed in pair})
    without = [[v for pair, v in nulls.items() if seed not in pair] for seed in seeds if len(seeds) > 2]
    mean = float(np.mean([*nulls.values()])) if nulls else np.nan
    return Estimate.jackknife(mean, [float(np.mean(rest)) if rest else np.nan for rest in without])


def _share(e: Estimate) -> Estimate:
    return Estimate(e.value, *np.clip([e.low, e.high], 0.0, 1.0).tolist())


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def _estimate(saved: dict[str, float | None]) -> Estimate:
    return Estimate(*(_known(saved.get(key)) for key in ("value", "low", "high")))


def _spread(name: str, e: Estimate) -> dict[str, float]:
    return {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}


def _point(row: dict[str, Any], name: str) -> dict[str, float]:
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _told(table: pd.DataFrame, name: str) -> list[str]:
    """A column for people: numbers with their intervals."""
    rows = (Estimate(**_point(row, name)) for row in table.to_dict("records"))
    return [format(e, ".3g") if np.isfinite(e.low) else format(e.value, ".3g") for e in rows]
