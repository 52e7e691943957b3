"""A sweep in a panel, without widgets: several values of some of a form's knobs, and how their SAEs stand."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from ..knobs import Knob, hint, knobs
from ..launcher import Job
from ..runs import Run, Tail
from ..saes import variant
from ..sweeps import Plan, Sweep
from ..sweeps.plan import ALONE
from ..training import TrainConfig
from .curves import thinned
from .forms import TrainingForm, typed

L0 = ("k", "target_l0")  # either is what a sweep calls k
CURVE = ("tokens", "fvu")  # what is drawn of each SAE while they are trained
FEW = 200  # points of a curve, of which there are many


class Varying:
    """Several values of some of a form's knobs, and several seeds: the sweep that is asked for.

    Attributes:
        asked: what was typed, by knob; right or wrong.
        seeds: SAEs of each kind.
    """

    def __init__(self, form: TrainingForm):
        self.form, self.asked, self.seeds = form, {}, 1
        self._checked: tuple[str, dict[str, str]] = ("", {})

    @property
    def rows(self) -> dict[str, Knob]:
        """The knobs that may vary."""
        return {name: row for name, row in self.form.rows.items() if name == "variant" or name not in ALONE}

    def set(self, name: str, given: str | int) -> None:
        """Puts values, as typed, into a row: "16, 32, 64"; an empty text takes the row away.

        Raises:
            TypeError: if there is no such row.
        """
        if name == "seeds":
            self.seeds = int(given)
        elif not str(given).strip():
            self.asked.pop(name, None)
        elif name not in self.rows:
            raise TypeError(f"A sweep cannot vary {name!r}.{hint(name, self.rows)} It can: {', '.join(self.rows)}.")
        else:
            self.asked[name] = str(given)

    def begin(self, name: str) -> None:
        """A row for a knob, with the value that the form has."""
        self.set(name, typed(self.form.values[name]) or "None")

    @property
    def active(self) -> bool:
        """Whether there is something to sweep over."""
        return bool(self.known) or self.seeds > 1

    @property
    def values(self) -> dict[str, list[Any]]:
        """What was typed, as the knobs' kinds.

        Raises:
            ValueError: for what is wrong.
        """
        return {name: self.rows[name].several(given) for name, given in self.known.items()}

    @property
    def errors(self) -> dict[str, str]:
        """What is wrong, by row; under "" what is wrong with all of it. Looked up anew where something was typed."""
        typed = repr((self.known, self.seeds, self.form.asked))
        if typed != self._checked[0]:
            self._checked = (typed, self._found())
        return self._checked[1]

    def _found(self) -> dict[str, str]:
        found, rows = {}, self.rows
        for name, given in self.known.items():
            try:
                rows[name].several(given)
            except ValueError as error:
                found[name] = str(error)
        if found or not self.active or self.form.errors:
            return found
        try:
            self.plan.check(detached=True)
        except (ValueError, TypeError, KeyError) as error:
            return {"": str(error.args[0]) if error.args else type(error).__name__}
        return {}

    @property
    def plan(self) -> Plan:
        """The sweep.

        Raises:
            ValueError, TypeError, KeyError: for what does not go together.
        """
        variants, knobs = self._call
        return Plan.of(variants, **knobs)

    @property
    def said(self) -> str:
        """How much it is."""
        plan = self.plan
        n = len(plan.saes)
        tokens = sum(job.train.steps * job.train.batch for job in (plan.job_of(g[0], Path()) for g in plan.groups))
        return f"{n:,} SAE{'s' * (n > 1)} in {plan.passes} over the text: the model reads {tokens:,} tokens"

    def call(self, folder: str | Path) -> str:
        """The same in Python."""
        variants, knobs = self._call
        given = "".join(f", {name}={value!r}" for name, value in knobs.items())
        return f"sl.sweep({variants!r}{given}, folder={str(folder)!r}, detach=True)"

    @property
    def known(self) -> dict[str, str]:
        """What was typed of knobs that the form has now."""
        return {name: given for name, given in self.asked.items() if name in self.rows}

    @property
    def _call(self) -> tuple[Any, dict[str, Any]]:
        """What `sweep` is given: variants and knobs."""
        over, values = self.values, self.form.values
        names = over.pop("variant", [self.form.variant])
        aim = next((over.pop(name) for name in L0 if name in over), [next(filter(None, map(values.get, L0)), None)])
        more = {"k": aim, "d_sae": over.pop("d_sae", [values["d_sae"]]), "seeds": self.seeds}
        fixed = {n: v for n, v in self.form.asked.items() if n not in (*over, *more, *L0, "variant", "run")}
        shared = {row.name for config in (Job, TrainConfig) for row in knobs(config)}
        own = {n: fixed.pop(n) for n in [*fixed] if n not in shared}
        variants = {n: {k: v for k, v in own.items() if k in _has(n)} for n in names} if own else names
        return variants, more | fixed | over


def _has(name: str) -> set[str]:
    return {f.name for f in fields(variant(name).Config)}


class Swept:
    """How a sweep stands: a row and a curve per SAE."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.sweep = Sweep.load(folder)
        self.logs: dict[str, pd.DataFrame] = {}
        self._tails = {row["run"]: Tail(Path(row["run"]) / "log.jsonl") for row in self.sweep.rows}
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}

    def read(self) -> bool:
        """Reads what is new, into `logs` by an SAE's name, with few rows each; whether anything is."""
        sweep, new = Sweep.read(self.sweep.plan, self.folder), False
        for folder, tail in self._tails.items():
            fresh = {row["step"]: row for row in tail.new() if "fvu" in row}
            if fresh:
                rows = fresh if tail.restarted else self._rows.get(folder, {}) | fresh
                self._rows[folder], new = rows, True
                numbers = [{name: row[name] for name in CURVE} for row in rows.values()]
                self.logs[Run(folder).name] = thinned(pd.DataFrame(numbers), FEW)
        new = new or sweep.rows != self.sweep.rows
        self.sweep = sweep
        return new

    @property
    def table(self) -> pd.DataFrame:
        """One row per SAE, by its folder: what tells it from the others, and what was measured."""
        found = self.sweep.table.set_index("run")
        told = [c for c in (*self.sweep.varied, "seed") if found[c].nunique(dropna=False) > 1]
        return found[[*told, "state", "l0", "matched", "alive", "fvu", "ce_recovered"]]
