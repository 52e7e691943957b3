"""What was said of latents, and how good it is."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .. import plots
from ..intervals import Estimate, draws, interval, plain_json
from .examples import Reading, Sample
from .rules import Explanation
from .scorers import CHANCE

SHOWN = 3  # windows in a repr


@dataclass(frozen=True)
class Explained:
    """One latent.

    Attributes:
        scores: numbers by name; those named like scorers are the scores.
        windows: of each split, how many it fired in.
        sample: the held-out windows that it was judged on.
    """

    explanation: Explanation
    scores: dict[str, float]
    windows: tuple[int, int]
    sample: Sample | None = None

    def to_json(self) -> dict[str, Any]:
        said = {"latent": self.explanation.latent, "explanation": self.explanation.to_json()}
        return plain_json(said | {"scores": self.scores, "windows": self.windows})

    @classmethod
    def from_json(cls, saved: dict[str, Any], sample: Sample | None = None) -> "Explained":
        scores = {name: math.nan if value is None else value for name, value in saved["scores"].items()}
        return cls(Explanation.from_json(saved["explanation"]), scores, tuple(saved["windows"]), sample)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self.scores[name]:.2f}" for name in CHANCE if name in self.scores)
        windows = self.sample.active[:SHOWN] if self.sample else ()
        return "\n".join([repr(self.explanation), f"  {shown}", *(f"  {example!r}" for example in windows)])


@dataclass(frozen=True)
class Explanations(Mapping):
    """Explanations of latents by number: `found[12]`.

    Attributes:
        refused: latents that were not explained, and why.
        about: what was read, who explained and who judged.
        readings: the texts they were explained on and judged on.
    """

    found: dict[int, Explained]
    refused: dict[int, str]
    about: dict[str, Any]
    readings: tuple[Reading, Reading] | None = field(default=None, repr=False)

    def __getitem__(self, latent: int) -> Explained:
        """Raises:
        KeyError: a latent that was not asked for, or not explained; the message says why.
        """
        if latent in self.found:
            return self.found[latent]
        why = self.refused.get(latent, f"it is not among the {len(self)} that were explained")
        raise KeyError(f"Latent {latent}: {why}.")

    def __iter__(self) -> Iterator[int]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def scorers(self) -> list[str]:
        """Those that were used."""
        return [name for name in CHANCE if any(name in e.scores for e in self.found.values())]

    @property
    def table(self) -> pd.DataFrame:
        """One row per latent: what it is said to fire on, and the scores; the best first."""
        rows = [{"latent": n, "explanation": e.explanation.text, **e.scores} for n, e in self.found.items()]
        columns = ["latent", "explanation", *self.scorers]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values(columns[2], ascending=False, ignore_index=True) if self.scorers else table

    @property
    def numbers(self) -> pd.DataFrame:
        """One row per latent with every number that the scorers gave."""
        return pd.DataFrame([{"latent": n, **e.scores} for n, e in self.found.items()])

    def mean(self, number: str) -> Estimate:
        """A number's mean over latents, with its interval by bootstrap over them.

        Raises:
            KeyError: a number that no scorer gave.
        """
        if number not in self.numbers:
            raise KeyError(f"No number {number!r}. There are: {', '.join(self.numbers.columns[1:])}.")
        values = self.numbers[number].dropna().to_numpy()
        if len(values) < 2:
            return Estimate.mean(values.tolist())
        return interval(draws(len(values), 1000) @ values / len(values))

    @property
    def figure(self):
        """How the scores spread over latents, beside chance (plotly)."""
        return plots.spreads(self.numbers[self.scorers], CHANCE)

    def to_json(self) -> dict[str, Any]:
        means = {name: self.mean(name).to_json() for name in self.scorers}
        latents = [e.to_json() for e in self.found.values()]
        return plain_json({"about": self.about, "means": means, "latents": latents, "refused": self.refused})

    def __repr__(self) -> str:
        lines = [f"Explanations of {len(self)} latents by {self.about['explainer']}, judged by {self.about['judge']}"]
        lines += [f"  {name:<13}{self.mean(name)} (chance {CHANCE[name]:g})" for name in self.scorers]
        if self.refused:
            lines.append(
                f"  {len(self.refused)} were not explained: latent {min(self.refused)}, for one, "
                f"{self.refused[min(self.refused)]}"
            )
        return "\n".join([*lines, *(repr(e.explanation) for e in list(self.found.values())[:SHOWN])])
