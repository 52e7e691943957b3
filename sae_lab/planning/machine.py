"""What a machine takes for a unit of each kind of work: measured there once, kept as JSON, used anywhere."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..runs.files import replace
from ..workload import UNITS, Amounts, Caches

FORMAT = "sae_lab machine/1"


@dataclass(frozen=True)
class Machine:
    """Made by `gauge`, which measures it.

    Attributes:
        seconds: per unit of work (`workload.UNITS`), with so many threads.
        cache: bytes that a core has to itself (L2), and of the last cache before memory (L3).
        threads: of torch.
        base: bytes that a process takes before it has an SAE.
        choose_in: precision that "auto" chooses latents in, by the least d_in from which on it does.
        about: processor, versions, when, and how far `seconds` are from what they were measured on.
    """

    seconds: Mapping[str, float]
    cache: Caches
    threads: int
    base: int
    choose_in: Mapping[int, str]
    about: Mapping[str, Any]

    def __post_init__(self):
        odd = {u: s for u, s in self.seconds.items() if not (isinstance(s, float | int) and 0 <= s < math.inf)}
        if odd or set(self.seconds) - set(UNITS):
            raise ValueError(f"A machine takes a finite time, 0 or more, for units {', '.join(UNITS)}; this has {odd}.")
        for name, value in (("own cache", self.cache.own), ("last cache", self.cache.last), ("threads", self.threads)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}={value!r} of a machine must be a whole number of at least 1.")

    def auto(self, d_in: int) -> str:
        """The precision that "auto" means at this width."""
        return self.choose_in[max(least for least in self.choose_in if least <= d_in)]

    def time(self, amounts: Mapping[str, float]) -> float:
        """Seconds for so much of each unit.

        Raises:
            ValueError: for a unit that was not measured here.
        """
        for unit, amount in amounts.items():
            if amount and unit not in self.seconds:
                raise ValueError(f"This machine was gauged without {unit!r} ({UNITS[unit]}). Gauge it again.")
        return sum(amount * self.seconds[unit] for unit, amount in amounts.items() if amount)

    def times(self, parts: Amounts) -> dict[str, float]:
        """Seconds of each part."""
        return {part: self.time(amounts) for part, amounts in parts.items()}

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self) | {"choose_in": {str(k): v for k, v in self.choose_in.items()}}

    @classmethod
    def from_json(cls, saved: Any) -> "Machine":
        """Raises ValueError for what `to_json` did not give."""
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise ValueError(f"This is no machine of format {FORMAT!r}. Make one there: sae-lab gauge machine.json.")
        missing = {f.name for f in fields(cls)} - set(saved)
        if missing:
            raise ValueError(f"A machine's file has to say {', '.join(sorted(missing))} too. Gauge that machine again.")
        given = {f.name: saved[f.name] for f in fields(cls)}
        if not (isinstance(given["cache"], list) and len(given["cache"]) == 2):
            raise ValueError(f"cache={given['cache']!r} of a machine must be two: a core's own and the last.")
        choose_in = {int(least): name for least, name in given["choose_in"].items()}
        return cls(**given | {"cache": Caches(*given["cache"]), "choose_in": choose_in})

    def save(self, file: str | Path) -> Path:
        """Writes it as JSON, for `load` here or elsewhere."""
        replace(Path(file), json.dumps(self.to_json(), indent=1).encode())
        return Path(file)

    @classmethod
    def load(cls, file: str | Path) -> "Machine":
        """Raises ValueError for a file that is no machine's."""
        try:
            return cls.from_json(json.loads(Path(file).read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON: {error}. Make it again: sae-lab gauge {file}.") from error

    def __repr__(self) -> str:
        cpu, off = self.about.get("cpu", "?"), self.about.get("off")
        told = "" if off is None else f", its own small steps explained within {off:.0%}"
        return f"Machine({self.about.get('host', '?')}, {cpu}, threads {self.threads}{told})"
