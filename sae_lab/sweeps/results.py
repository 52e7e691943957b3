"""What a sweep found, read from its folder: a row per SAE, a row per kind, and the Pareto picture."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..intervals import Estimate, plain_json
from ..launcher import Launched
from ..report import Section
from ..runs import Run
from .plan import Asked, Plan, passes

NUMBERS = ("l0", "alive", "fvu", "ce_recovered")
KIND = ("variant", "k", "d_sae")


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep's results so far; `load` reads them again.

    Attributes:
        plan: what was asked for.
        folder: where it is.
        rows: one per SAE, those of `table`; `said` is why one failed.
    """

    plan: Plan
    folder: Path
    rows: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path) -> "Sweep":
        """The results in a sweep's folder.

        Raises:
            FileNotFoundError: if it holds no sweep.
        """
        run = Run(folder)
        if run.kind != "sweep":
            raise FileNotFoundError(f"No sweep in {str(folder)!r}. Give a folder that sweep(folder=...) wrote.")
        saved = run.config or run.job
        return cls.read(
            Plan.from_json({key: value for key, value in saved.items() if key not in ("kind", "cwd")}), folder
        )

    @classmethod
    def read(cls, plan: Plan, folder: str | Path) -> "Sweep":
        """As `load`, of a plan that is known."""
        return cls(plan, Path(folder), [_row(plan, asked, Run(Path(folder) / asked.name)) for asked in plan.saes])

    @property
    def run(self) -> Launched:
        """The sweep's own folder: status, pause(), resume(), stop(), wait()."""
        return Launched(self.folder)

    def wait(self, timeout: float | None = None) -> "Sweep":
        """The results once its process has ended.

        Raises:
            TimeoutError, RuntimeError: as `Launched.wait`.
        """
        self.run.wait(timeout)
        return Sweep.load(self.folder)

    @property
    def table(self) -> pd.DataFrame:
        """One row per SAE; `off` is measured L0 over k, less 1, and `matched` whether that is within the tolerance."""
        return pd.DataFrame(self.rows).drop(columns="said")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per kind: means over its seeds with 95% t intervals (of the mean; none for one seed).

        A kind is a variant, k, d_sae and a value of each knob that the sweep is `over`.

        `total` counts SAEs, `seeds` those that were measured, `matched` those of these whose L0 is in the tolerance.
        """
        kinds: dict[tuple, list[dict]] = {}
        for row in self.rows:
            kinds.setdefault(tuple(row[name] for name in self.varied), []).append(row)
        return pd.DataFrame([_kind(self.varied, rows) for rows in kinds.values()])

    @property
    def varied(self) -> list[str]:
        """The columns that tell kinds apart."""
        return [*KIND, *self.plan.over]

    @property
    def matched(self) -> pd.DataFrame:
        """The rows of `summary` that are compared: every seed was measured, at the L0 asked for. The best FVU first."""
        return self._compared(True).sort_values(["d_sae", "k", "fvu"])

    @property
    def unmatched(self) -> pd.DataFrame:
        """The rows of `summary` that are not."""
        return self._compared(False)

    @property
    def failed(self) -> dict[str, str]:
        """SAEs that failed, and why."""
        return {Path(row["run"]).name: row["said"] for row in self.rows if row["said"]}

    @property
    def figure(self):
        """L0 against FVU and against CE recovered (plotly): means and intervals over seeds, open where unmatched."""
        return plots.pareto(self.summary, self.table, self.plan.tolerance, [*self.plan.over])

    def against(self, name: str):
        """FVU, L0, CE recovered and the share of latents alive over one of the knobs that vary (plotly).

        Raises:
            ValueError: for a knob that does not vary.
        """
        if name not in self.varied[1:]:
            raise ValueError(f"{name!r} does not vary here. What does: {', '.join(self.varied[1:])}.")
        table = self.table
        others = [c for c in self.varied[1:] if c != name and table[c].nunique(dropna=False) > 1]
        rows = self.summary.dropna(subset="l0").sort_values(name)
        if table[name].isna().any():
            rows[name] = ["None" if pd.isna(value) else f"{value:g}" for value in rows[name]]
        long = [
            {"number": number, name: row[name], "value": row[number], "kind": kind}
            | {"low": row[f"{number}_low"], "high": row[f"{number}_high"]}
            for number in ("fvu", "l0", "ce_recovered", "alive")
            for row, kind in zip(rows.to_dict("records"), plots.series(rows, others))
        ]
        columns = ["number", name, "value", "low", "high", "kind"]
        return plots.numbers(pd.DataFrame(long, columns=columns), name, {}, by="kind")

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "plan": self.plan.to_json(),
            "interval": "95%, Student's t over seeds",
            "saes": plain_json(self.table.to_dict("records")),
            "summary": plain_json(self.summary.to_dict("records")),
            "unmatched": plain_json(self.unmatched[self.varied].values.tolist()),
            "failed": self.failed,
        }

    def __repr__(self) -> str:
        done, rest = sum(row["l0"] is not None for row in self.rows), self.unmatched
        lines = [f"Sweep {str(self.folder)!r}: {done} of {len(self.rows)} SAEs measured"]
        lines += [told(self.matched, self.varied).to_string(index=False)] if len(self.matched) else []
        lines += [f"not compared: {self._why(row)}" for row in rest.to_dict("records")]
        return "\n".join(lines + [f"failed: {name}: {said}" for name, said in self.failed.items()])

    @property
    def subtitle(self) -> str:
        job, over = self.plan.job, self.plan.over
        at = "several sites" if "site" in over else job.site
        of = "several texts" if "text" in over else job.text
        tokens = "" if {"tokens", "batch"} & over.keys() else f"{job.train.steps * job.train.batch:,} tokens of "
        return (
            f"{len(self.rows)} SAEs at {at} of {job.model}, {tokens}{of} each in {self._passes}; measured on "
            f"{job.evaluation:,} test tokens."
        )

    @property
    def _passes(self) -> str:
        """How often the text was read: as the runs have it, where memory made more groups than the plan has."""
        runs = (Run(row["run"]) for row in self.rows)
        streams = {tuple(run.config.get("stream", ())) for run in runs if run.exists}
        return passes(max(len(self.plan.groups), len(streams)))

    @property
    def sections(self) -> list[Section]:
        """The report, from the picture to single SAEs."""
        share, seeds, single = f"{self.plan.tolerance:.0%}", self.plan.seeds, self.table.drop(columns="run")
        data = "the same text in the same order" if self.plan.same_data else "a text of their own each"
        equal = told(self.matched, self.varied)
        over = f"Means over {seeds} seeds of the weights, which read {data}; bars are 95% intervals of the mean (t)."
        return [
            Section("Pareto", f"{over} Open marks: L0 not within {share} of k (grey bands).", (self.figure,)),
            Section("At equal L0", f"Every seed within {share} of k, the best FVU first.", (equal,)),
            *self._odd(),
            Section(
                "Every SAE",
                "alive: the share of latents that fired on the test tokens.",
                (single,),
            ),
        ]

    def _odd(self) -> Iterator[Section]:
        if len(self.unmatched):
            why = tuple(self._why(row) for row in self.unmatched.to_dict("records"))
            said = "Their L0 is not the one asked for, or none was, or some are missing."
            yield Section("Not compared", said, (*why, told(self.unmatched, self.varied)))
        if self.failed:
            yield Section("Failed", "Left out.", tuple(f"{name}: {said}" for name, said in self.failed.items()))

    def _compared(self, yes: bool) -> pd.DataFrame:
        whole = (self.summary["matched"] == self.summary["total"]) == yes
        return self.summary[whole].reset_index(drop=True)

    def _why(self, row: dict[str, Any]) -> str:
        """Why a kind is not compared."""
        more = "".join(f", {name} {row[name]}" for name in self.plan.over)
        asked = "" if row["k"] is None or row["k"] != row["k"] else f", k {row['k']:.0f}"
        said = f"{row['variant']}{asked}, {row['d_sae']:,} latents{more}: "
        if not asked:
            return f"{said}no L0 was asked for"
        off = f"L0 {row['l0']:.1f}, {row['l0'] / row['k'] - 1:+.0%}; " if row["seeds"] else ""
        return f"{said}{off}{row['matched']} of {row['seeds']} measured seeds match"


def told(kinds: pd.DataFrame, varied: Sequence[str] = KIND) -> pd.DataFrame:
    """Rows of a summary for people: a mean and its interval in one column."""
    out = kinds[[*varied, "seeds"]].copy()
    for name, digits in (("l0", ".1f"), ("fvu", ".4f"), ("ce_recovered", ".4f")):
        spread = zip(kinds[name], kinds[f"{name}_low"], kinds[f"{name}_high"])
        out[name] = [format(Estimate(*e), digits) if math.isfinite(e[1]) else format(e[0], digits) for e in spread]
    return out.assign(alive=kinds["alive"].map("{:.1%}".format))


def _row(plan: Plan, asked: Asked, run: Run) -> dict[str, Any]:
    found, status = run.eval, run.status
    value = {name: found[name]["value"] if found else None for name in ("l0", "fvu", "ce_recovered", "dead")}
    off = value["l0"] / asked.k - 1 if found and asked.k else None
    return {
        **dict(zip((*KIND, "seed"), asked)),
        "state": status["state"],
        "tokens": status.get("tokens", 0),
        "l0": value["l0"],
        "off": off,
        "matched": abs(off) <= plan.tolerance if off is not None else None,
        "alive": 1 - value["dead"] if found else None,
        "fvu": value["fvu"],
        "ce_recovered": value["ce_recovered"],
        "run": str(run.folder),
        "said": status.get("error", "") if status["state"] == "failed" else "",
        **dict(asked.more),  # last: the tokens that were asked for, not those read so far
    }


def _kind(varied: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    there = [row for row in rows if row["l0"] is not None]
    out = {key: rows[0][key] for key in varied}
    out |= {"total": len(rows), "seeds": len(there), "matched": sum(bool(row["matched"]) for row in there)}
    for name in NUMBERS:
        mean = Estimate.mean([row[name] for row in there])
        out |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    return out
