"""The quickstart's experiment: which concept a latent steers to best, at which strength, and how often.

The unit of strength is the latent's own typical activation (the mean over tokens on which it fires), so that 1 means
"as if it fired once more". The control is a random latent's direction scaled to the same norm.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import plots
from ..intervals import Estimate
from ..models import LM, Edit
from ..reading import home
from ..saes import SAE
from ..sites import Site
from ..tiny import world
from .pushes import direction, typical_activation
from .texts import openings, shows, surprise, write

POSITIVES = 50  # a concept with fewer held-out positives is not tried
MEANING = ("language", "register", "topic", "entity", "attribute", "sentiment")  # branches a reader can see in a text
GIVEN = "language.english"  # the language of all prompts
BABBLE = 3.0  # nats per token over the untouched text's surprise, from which a steered text counts as broken


@dataclass(frozen=True)
class SteeringExperiment:
    """How often a concept appears in what the model writes, with a latent, with a control, and without.

    Attributes:
        rows: one per edit and strength: share of texts in which `world.recognise` finds the concept, of how many, and
            their `surprise`: nats per new token under the untouched model, which tells steered text from babble.
        texts: prompt and continuation of every text, by edit and strength.
        strength: the one chosen on other prompts.
    """

    concept: str
    latent: int
    control: int
    strength: float
    rows: pd.DataFrame
    texts: dict[tuple[str, float], list[tuple[str, str]]]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """The share of texts with the concept at the chosen strength, beside control and untouched model."""
        at = self.rows[(self.rows.strength == self.strength) | (self.rows.edit == "untouched")]
        return at[["edit", "found", "low", "high", "surprise", "texts"]].reset_index(drop=True)

    @property
    def figure(self):
        """Share of texts with the concept against strength (plotly)."""
        zero = self.rows[self.rows.edit == "untouched"].assign(strength=0.0)
        edited = self.rows[self.rows.edit != "untouched"]
        lines = [pd.concat([zero.assign(edit=name), rows]) for name, rows in edited.groupby("edit", sort=False)]
        return plots.dose(pd.concat(lines))

    def to_json(self) -> dict[str, Any]:
        found = {r.edit: {"value": r.found, "low": r.low, "high": r.high} for r in self.table.itertuples()}
        about = {"concept": self.concept, "latent": self.latent, "control": self.control, "strength": self.strength}
        return about | found | {"about": self.about}

    def __repr__(self) -> str:
        shown = ", ".join(f"{r.edit} {r.found:.0%}" for r in self.table.itertuples())
        return f"Steering to {self.concept} with latent {self.latent} at x{self.strength:g}: {shown}"


def experiment(
    sae: SAE,
    lm: LM,
    latent: int,
    concept: str,
    *,
    site: str | Site | None = None,
    strengths: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 6.0),
    prompts: int = 64,
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    text: Any = None,
    seed: int = 0,
) -> SteeringExperiment:
    """Counts in how many continuations of held-out prompts a concept appears, with a latent and with a control.

    Prompts are the first words of test texts without the concept. The strength that is reported was chosen on 16 other
    prompts: the weakest within 5 points of the best there, among those that do not make the model babble.

    Args:
        text: where the latent's typical activation is measured; by default what the SAE was trained on.

    Raises:
        ValueError: a latent the SAE does not have, or that never fires on validation text.
    """
    site, mine = home(sae, site), direction(sae, latent)
    typical = typical_activation(sae, lm, site, text=text, seed=seed)[latent].item()
    if not typical:
        raise ValueError(f"Latent {latent} never fires on validation text: steer with another one.")
    control = int(np.random.default_rng(seed + 1).choice(np.delete(np.arange(sae.cfg.d_sae), latent)))
    other = direction(sae, control)
    vectors = {"latent": mine, "random latent": other * (mine.norm() / other.norm())}
    edits: dict[tuple[str, float], Edit | None] = {("untouched", 0.0): None}
    edits |= {(name, s): Edit(site.target, v * typical, s) for name, v in vectors.items() for s in strengths}
    writing = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    tries = {key: edit for key, edit in edits.items() if key[0] != "random latent"}
    tried = write(lm, openings(lm, concept, 16, "validation", seed), tries, **writing)
    strength = _strength(lm, tried, concept)
    texts = write(lm, openings(lm, concept, prompts, "test", seed), edits, **writing)
    rows = []
    for (name, s), written in texts.items():
        e = Estimate.share(_found(written, concept), prompts)
        row = {"edit": name, "strength": s, "found": e.value, "low": e.low, "high": e.high}
        rows.append(row | {"surprise": surprise(lm, written), "texts": prompts})
    about = {"site": str(site), "prompts": prompts, "typical_activation": typical, "new_tokens": max_new_tokens}
    about |= {"temperature": temperature, "seed": seed}
    return SteeringExperiment(concept, latent, control, strength, pd.DataFrame(rows), texts, about)


def target(
    sae: SAE,
    lm: LM,
    table: pd.DataFrame,
    *,
    site: str | Site | None = None,
    tried: int = 2,
    strengths: Sequence[float] = (3.0, 6.0),
    prompts: int = 8,
    max_new_tokens: int = 24,
    seed: int = 0,
) -> Any:
    """The concept whose best latent steers best: the row of `table` that most raises how often the concept is written.

    To name a concept and to cause it are two things, so well-named concepts are tried on a few validation prompts;
    `experiment` then measures the winner on other ones. A latent that makes the model babble steers nowhere.

    Args:
        table: `Concepts.table`: columns concept, latent, latents (F1), positives; best first.
        tried: how many concepts of each of the tree's great branches to try: to name well is no promise to steer well.

    Raises:
        ValueError: if no concept of meaning can be read off text.
    """
    site = home(sae, site)
    typical = typical_activation(sae, lm, site, seed=seed)
    lifts = []
    for row in candidates(table, tried):
        vector = direction(sae, row.latent) * typical[row.latent]
        edits = {("untouched", 0.0): None} | {("latent", s): Edit(site.target, vector, s) for s in strengths}
        try:
            before = openings(lm, row.concept, prompts, "validation", seed + 1, among=10)
        except ValueError:  # nearly every text shows it
            continue
        texts = write(lm, before, edits, max_new_tokens=max_new_tokens, temperature=0.7, seed=seed)
        best = max(_sound(lm, texts, row.concept).values(), default=0.0)
        lifts.append((best - _found(texts["untouched", 0.0], row.concept) / prompts, row.latents, row))
    if not lifts:
        raise ValueError("No recovered concept can be read off text: train on more tokens.")
    return max(lifts, key=lambda tried: tried[:2])[2]


def candidates(table: pd.DataFrame, n: int) -> list[Any]:
    """The n best-named concepts of each branch of meaning that `world.recognise` can read."""
    readable, rows, branches = set(world.recognisable(("word", "context"))), [], Counter()
    for row in table[table.positives >= POSITIVES].itertuples():
        branch, below, _ = row.concept.partition(".")
        if below and branch in MEANING and row.concept in readable - {GIVEN} and branches[branch] < n:
            rows.append(row)
            branches[branch] += 1
    return rows


def _strength(lm: LM, texts: dict[tuple[str, float], list[tuple[str, str]]], concept: str) -> float:
    """The weakest strength within 5 points of the best; where the model babbles at all of them, the weakest of all."""
    sound = _sound(lm, texts, concept) or {min(s for name, s in texts if name == "latent"): 0.0}
    return min(s for s, share in sound.items() if share >= max(sound.values()) - 0.05)


def _sound(lm: LM, texts: dict[tuple[str, float], list[tuple[str, str]]], concept: str) -> dict[float, float]:
    """Share of texts with the concept at each strength that does not make the model babble."""
    limit = surprise(lm, texts["untouched", 0.0]) + BABBLE
    tried = {s: rows for (name, s), rows in texts.items() if name == "latent"}
    return {s: _found(rows, concept) / len(rows) for s, rows in tried.items() if surprise(lm, rows) <= limit}


def _found(rows: list[tuple[str, str]], concept: str) -> int:
    return sum(shows(prompt + new, concept) for prompt, new in rows)
