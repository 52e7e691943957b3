"""What a user asks of some configs, field by field and before it is right. No widgets: `faces` draws it."""

import re
import shlex
from dataclasses import dataclass, fields, is_dataclass, replace
from math import log10
from typing import Any

from ..knobs import Knob, hint, knobs
from ..launcher import Job, checked, devices
from ..saes import REGISTRY, SAE, variant
from ..training import TrainConfig

COMMON = {f.name for config in (Job, SAE.Config, TrainConfig) for f in fields(config)}
USUAL = {
    "variant",
    "model",
    "site",
    "text",
    "run",
    "d_sae",
    "target_l0",
    "tokens",
    "lr",
}  # of COMMON, what is often set
START = {"d_sae": 2048}  # where a config has no default; the quickstart's


class Form:
    """Config classes as rows to fill in, and what was filled in. A knob that two configs have is the first one's.

    What is set stays, whether right or wrong and whether the configs have such a knob now, until it is set anew.
    """

    def __init__(self, *configs: type, **given: Any):
        self._configs = configs
        self._given: dict[str, Any] = {}
        for name, value in given.items():
            self.set(name, value)

    @property
    def configs(self) -> tuple[type, ...]:
        """The config classes whose knobs are the rows."""
        return self._configs

    @property
    def rows(self) -> dict[str, Knob]:
        """A row per knob, in order of declaration; a config inside a config is none."""
        rows: dict[str, Knob] = {}
        for row in (row for config in self.configs for row in knobs(config)):
            if row.kind is not dict and not is_dataclass(row.kind):
                rows.setdefault(row.name, row)
        return rows

    @property
    def usual(self) -> list[Knob]:
        """What a user usually sets: what has no default, a variant's own knobs, and a few that all trainings have."""
        return [row for row in self.rows.values() if row.required or row.name in USUAL or row.name not in COMMON]

    @property
    def more(self) -> list[Knob]:
        """The other rows."""
        usual = self.usual
        return [row for row in self.rows.values() if row not in usual]

    def set(self, name: str, given: Any) -> None:
        """Puts a number or a text, as typed, into a row; an empty text or None is the default, or None if that may be.

        What is wrong with it is said by `errors`.

        Raises:
            TypeError: if there is no such row.
        """
        rows = self.rows
        if name not in rows:
            raise TypeError(f"This form has no knob {name!r}.{hint(name, rows)} It has: {', '.join(rows)}.")
        row = rows[name]
        value = row.read(given)
        if value is None and not (row.optional and row.default is not None):
            self._given.pop(name, None)
        else:
            self._given[name] = value

    @property
    def asked(self) -> dict[str, Any]:
        """What was set, right or wrong, and a start for what must be."""
        start = {name: START[name] for name, row in self.rows.items() if row.required and name in START}
        known = start | self._given
        return {name: known[name] for name in self.rows if name in known}

    @property
    def errors(self) -> dict[str, str]:
        """What is wrong, by row; under "" what is wrong with all of it."""
        found, asked = {}, self.asked
        for name, row in self.rows.items():
            try:
                if row.required and name not in asked:
                    raise ValueError(f"{name} is needed: {row.help}.")
                row.check(asked.get(name, row.default))
            except ValueError as error:
                found[name] = str(error)
        if found:
            return found
        try:
            self.made()
        except (ValueError, TypeError, KeyError) as error:
            said = str(error.args[0]) if error.args else type(error).__name__
            return {self._whose(said): said}
        return {}

    def made(self) -> list[Any]:
        """The configs themselves.

        Raises:
            ValueError, TypeError, KeyError: for what does not go together.
        """
        asked = self.asked
        return [config(**{f.name: asked[f.name] for f in fields(config) if f.name in asked}) for config in self.configs]

    @property
    def values(self) -> dict[str, Any]:
        """What every row comes to; None is worked out later. A row may follow from another, as k from target_l0."""
        asked, rows = self.asked, self.rows
        found = {name: asked.get(name, row.default) for name, row in rows.items()}
        for config in [] if self.errors else reversed(self.made()):
            follows = {f.name for f in fields(config)} & rows.keys() - asked.keys()
            found |= {name: getattr(config, name) for name in follows if rows[name].default is not None}
        return found

    @property
    def knobs(self) -> dict[str, Any]:
        """What was set, for whom the configs are made for.

        Raises:
            ValueError: if something is wrong; all that is.
        """
        errors = self.errors
        if errors:
            raise ValueError("\n".join(errors.values()))
        return self.asked

    def _whose(self, said: str) -> str:
        """The row that a complaint about all of it is about, if it begins with one or quotes one."""
        asked, rows = self.asked, self.rows
        begins = (name for name in rows if said.startswith(f"{name}="))
        quoted = (name for name, value in asked.items() if isinstance(value, str) and repr(value) in said)
        return next(begins, None) or next(quoted, "")


class TrainingForm(Form):
    """The form of a training: its job's knobs, its variant's, its loop's. Another variant is another set of rows.

    Variants are looked up when asked for, so that one from a notebook cell is there as soon as the cell has run.
    """

    def __init__(self, variant: str = Job.variant, **given: Any):
        super().__init__(variant=variant, **given)

    @property
    def variant(self) -> str:
        return self._given.get("variant", Job.variant)

    @property
    def configs(self) -> tuple[type, ...]:
        own = (REGISTRY[self.variant].Config,) if self.variant in REGISTRY else ()
        return Job, *own, TrainConfig

    @property
    def rows(self) -> dict[str, Knob]:
        rows = super().rows
        rows.pop("d_in", None)  # the model's to say
        paper = getattr(REGISTRY.get(self.variant), "paper", "which SAE")
        rows["device"] = replace(rows["device"], choices=tuple(devices()))
        return rows | {"variant": replace(rows["variant"], choices=tuple(sorted(REGISTRY)), help=paper)}

    def made(self) -> list[Any]:
        job = Job.of(**self.asked)
        return [job, checked(job, detached=False), job.train]

    @property
    def knobs(self) -> dict[str, Any]:
        """For sl.launch(**form.knobs)."""
        return {"variant": self.variant} | super().knobs

    @property
    def own(self) -> dict[str, Any]:
        """The variant's own, for sl.build(form.variant, d_in=..., **form.own)."""
        asked = self.knobs
        return {name: asked[name] for name in ("seed",) if name in asked} | Job.of(**asked).own

    @property
    def job(self) -> Job:
        """The training that is asked for."""
        return Job.of(**self.knobs)

    @property
    def detachable(self) -> bool:
        """Whether other processes find the variant; they do not if it was made in this one."""
        return variant(self.variant).__module__.rpartition(".")[0] == SAE.__module__.rpartition(".")[0]

    @property
    def command(self) -> str:
        """The line for a shell; empty if the variant is known to this process alone."""
        asked = {name: value for name, value in self.knobs.items() if name != "variant"}
        words = ["sae-lab", "train", self.variant, *(word for row in asked.items() for word in _flag(*row))]
        return " ".join(map(_quoted, words)) if self.detachable else ""

    @property
    def call(self) -> str:
        """The same in Python: as a process of its own, or here if the variant is known here alone."""
        asked = ", ".join(f"{name}={value!r}" for name, value in self.knobs.items())
        if self.detachable:
            return f"sl.launch({asked})"
        loop = f"for step in run_job(Job.of({asked})):\n    pass"
        return f"from sae_lab.launcher import Job, run_job  # here: no other process knows it\n\n{loop}"


@dataclass(frozen=True)
class Scale:
    """A range as the notches of a slider, a round number each; logarithmic where the range spans decades.

    Attributes:
        floor: what the logarithm begins with where the range begins at 0; notch 0 is `low` all the same.
    """

    low: float
    floor: float
    high: float
    notches: int
    log: bool
    whole: bool

    @classmethod
    def of(cls, row: Knob) -> "Scale | None":
        """The scale of a row; None for what is typed: no range, an open one that begins at 0, or None may be meant."""
        low, high, whole = row.low, row.high, row.kind is int
        if row.kind not in (int, float) or row.optional or row.choices or low is None or (low == 0 and high >= 2**20):
            return None
        if low < 0 or high < 100 * (low or 1):
            return cls(low, low, high, high - low if whole else 100, False, whole)
        floor = low or (0.5 if whole else (row.default or 1) / 1000)
        return cls(low, floor, high, round(20 * log10(high / floor)), True, whole)

    def value(self, notch: int) -> int | float:
        """The number at a notch; at the ends those of the range."""
        if notch in (0, self.notches):
            return self.high if notch else self.low
        share = notch / self.notches
        exact = (
            self.floor * (self.high / self.floor) ** share if self.log else self.low + (self.high - self.low) * share
        )
        found = min(max(float(f"{exact:.{2 if self.log else 4}g}"), self.low), self.high)
        return round(found) if self.whole else found

    def notch(self, value: float) -> int:
        """The notch nearest to a number."""
        inside = min(max(value, self.floor), self.high)
        share = log10(inside / self.floor) / log10(self.high / self.floor) if self.log else None
        return round(self.notches * ((inside - self.low) / (self.high - self.low) if share is None else share))


def typed(value: Any) -> str:
    """The text that `Knob.read` reads back as this value."""
    if isinstance(value, tuple | list):
        return ", ".join(map(typed, value))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:_}"
    return "" if value is None else str(value)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple | list):
        return [f"--{flag}", *map(str, value)]
    text = str(value)
    return [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]


def _quoted(word: str) -> str:
    """One word for a shell; what cannot be seen in it is spelt out, as bash and zsh read it."""
    if word.isprintable():
        return shlex.quote(word)
    spelt = re.sub(r"[\\']", r"\\\g<0>", word)
    return "$'" + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in spelt) + "'"
