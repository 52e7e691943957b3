"""Steering: add a latent's direction while the model writes, and measure what changes in what it writes.

The unit of strength is the latent's own typical activation (the mean over tokens on which it fires), so that 1 means
"as if it fired once more". The control is a random latent's direction scaled to the same norm.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import plots
from .intervals import Estimate
from .models import LM, Edit, Generation
from .reading import held_out, home, walk
from .saes import SAE
from .shapes import Direction, PerLatent
from .sites import Site
from .tiny import world

POSITIVES = 50  # a concept with fewer held-out positives is not tried
MEANING = ("language", "register", "topic", "entity", "attribute", "sentiment")  # branches a reader can see in a text
GIVEN = "language.english"  # the language of all prompts


@dataclass(frozen=True)
class Steered:
    """What the model wrote at each strength; row 0 of `table` is the untouched model."""

    prompt: str
    generation: Generation
    names: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"edit": self.names, "text": self.generation.texts})

    def __iter__(self) -> Iterator:
        return iter(self.generation)

    def __repr__(self) -> str:
        return "\n".join(f"{name:>12}: {self.prompt}{text}" for name, text in zip(self.names, self.generation.texts))


def steer(
    sae: SAE,
    lm: LM,
    latents: dict[int, float],
    prompt: str,
    *,
    site: str | Site | None = None,
    scale: Sequence[float] = (0.0, 1.0),
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
) -> Steered:
    """Lets the model continue a prompt with latents added: `{12: 4.0}` adds 4 times latent 12's decoder direction.

    Args:
        latents: latent -> how much of its activation to add, in units of the SAE's activations.
        scale: multiples of those; one row of text each. 0 is the untouched model.

    Raises:
        ValueError: a latent the SAE does not have, or a prompt that leaves no room in the context.
    """
    site = home(sae, site)
    vector = sum(amount * direction(sae, latent) for latent, amount in latents.items())
    edits = [Edit(site.target, vector, s) if s else None for s in scale]
    names = tuple(f"x {s:g}" if s else "untouched" for s in scale)
    generation = lm.generate(prompt, edits, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return Steered(prompt, generation, names)


def direction(sae: SAE, latent: int) -> Direction:
    """What one unit of a latent's activation adds to the model's activations.

    Raises:
        ValueError: a latent the SAE does not have.
    """
    if not 0 <= latent < sae.cfg.d_sae:
        raise ValueError(f"No latent {latent}: this SAE has latents 0 to {sae.cfg.d_sae - 1}.")
    return sae.W_dec[latent].detach()


@dataclass(frozen=True)
class SteeringExperiment:
    """How often a concept appears in what the model writes, with a latent, with a control, and without.

    Attributes:
        rows: one per edit and strength: texts in which `world.recognise` finds the concept, of how many.
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
        return at[["edit", "found", "low", "high", "texts"]].reset_index(drop=True)

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
    strengths: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    prompts: int = 64,
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    seed: int = 0,
) -> SteeringExperiment:
    """Counts in how many continuations of held-out prompts a concept appears, with a latent and with a control.

    Prompts are the first words of test texts without the concept. The strength that is reported was chosen on 16 other
    prompts, as the weakest within 5 points of the best there.

    Raises:
        ValueError: if the latent never fires on validation text, so that it has no strength of its own.
    """
    site = home(sae, site)
    typical = typical_activation(sae, lm, site, seed=seed)[latent].item()
    if not typical:
        raise ValueError(f"Latent {latent} never fires on validation text: steer with another one.")
    control = int(np.random.default_rng(seed + 1).choice(np.delete(np.arange(sae.cfg.d_sae), latent)))
    mine, other = direction(sae, latent), direction(sae, control)
    vectors = {"latent": mine, "random latent": other * (mine.norm() / other.norm())}
    edits: dict[tuple[str, float], Edit | None] = {("untouched", 0.0): None}
    edits |= {(name, s): Edit(site.target, v * typical, s) for name, v in vectors.items() for s in strengths}
    writing = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    tried = _counted(write(lm, openings(lm, concept, 16, "validation", seed), edits, **writing), concept)
    share = {s: tried["latent", s] / 16 for s in strengths}
    strength = min(s for s in strengths if share[s] >= max(share.values()) - 0.05)
    texts = write(lm, openings(lm, concept, prompts, "test", seed), edits, **writing)
    rows = []
    for (name, s), hits in _counted(texts, concept).items():
        e = Estimate.share(hits, prompts)
        rows.append({"edit": name, "strength": s, "found": e.value, "low": e.low, "high": e.high, "texts": prompts})
    about = {"site": str(site), "prompts": prompts, "typical_activation": typical, "new_tokens": max_new_tokens}
    about |= {"temperature": temperature, "seed": seed}
    return SteeringExperiment(concept, latent, control, strength, pd.DataFrame(rows), texts, about)


def target(
    sae: SAE,
    lm: LM,
    table: pd.DataFrame,
    *,
    site: str | Site | None = None,
    tried: int = 12,
    strengths: Sequence[float] = (2.0, 4.0, 8.0),
    prompts: int = 8,
    max_new_tokens: int = 24,
    seed: int = 0,
) -> Any:
    """The concept whose best latent steers best: the row of `table` that most raises how often the concept is written.

    To name a concept and to cause it are two things, so the best-named concepts are tried on a few validation prompts;
    `experiment` then measures the winner on other ones.

    Args:
        table: `Concepts.table`: columns concept, latent, latents (F1), positives; best first.
        tried: how many concepts to try, at most three of one branch of the tree.

    Raises:
        ValueError: if no concept of meaning can be read off text.
    """
    site = home(sae, site)
    typical = typical_activation(sae, lm, site, seed=seed)
    lifts = []
    for row in candidates(table, tried):
        vector = direction(sae, row.latent) * typical[row.latent]
        edits = [None, *(Edit(site.target, vector, s) for s in strengths)]
        before = openings(lm, row.concept, prompts, "validation", seed + 1)
        texts = lm.generate(before, edits, max_new_tokens=max_new_tokens, temperature=0.7, seed=seed).texts
        shown = np.array([shows(before[i // len(edits)] + new, row.concept) for i, new in enumerate(texts)])
        shares = shown.reshape(prompts, len(edits)).mean(0)
        lifts.append((shares[1:].max() - shares[0], row.latents, row))
    if not lifts:
        raise ValueError("No recovered concept can be read off text: train on more tokens.")
    return max(lifts, key=lambda lift: lift[:2])[2]


def candidates(table: pd.DataFrame, n: int) -> list[Any]:
    """The best-named concepts of meaning that `world.recognise` can read, at most three of one branch."""
    readable, rows, branches = set(world.recognisable(("word", "context"))), [], Counter()
    for row in table[table.positives >= POSITIVES].itertuples():
        branch = ".".join(row.concept.split(".")[:2])
        wanted = row.concept in readable and row.concept.startswith(MEANING) and row.concept != GIVEN
        if wanted and branches[branch] < 3 and len(rows) < n:
            rows.append(row)
            branches[branch] += 1
    return rows


def write(
    lm: LM, prompts: list[str], edits: dict[tuple[str, float], Edit | None], at_once: int = 64, **writing: Any
) -> dict[tuple[str, float], list[tuple[str, str]]]:
    """Every prompt continued under every edit: (prompt, continuation) by edit."""
    texts = {key: [] for key in edits}
    for key, edit in edits.items():
        for i in range(0, len(prompts), at_once):
            part = prompts[i : i + at_once]
            texts[key] += list(zip(part, lm.generate(part, [edit], **writing).texts))
    return texts


def openings(lm: LM, concept: str, n: int, split: str, seed: int, words: int = 8) -> list[str]:
    """The first words of held-out texts that do not show a concept; texts in English, since steering is read there.

    Raises:
        ValueError: if fewer than `n` of the first `100 n` texts are without it.
    """
    found = []
    for text in islice(world.texts(seed=seed, split=split, labels=False), 100 * n):
        opening = " ".join(text.text.split(" ")[:words])
        if text.language == "en" and not shows(opening, concept) and not shows(text.text, concept):
            found.append(opening)
        if len(found) == n:
            return found
    raise ValueError(f"Nearly every English text shows {concept}: there is nothing to steer to. Take another concept.")


def shows(text: str, concept: str) -> bool:
    """Whether the recogniser finds a concept, or one below it, anywhere in a text."""
    return any(c == concept or c.startswith(concept + ".") for _, _, c in world.recognise(text))


def typical_activation(
    sae: SAE, lm: LM, site: Site, *, tokens: int = 20_000, seed: int = 0, **options: Any
) -> PerLatent:
    """Mean activation of each latent over the validation tokens on which it fires; 0 where it never does."""
    total, times = torch.zeros(2, sae.cfg.d_sae, dtype=torch.float64)
    blocks = held_out(lm, sae.origin.get("text", "world"), "validation", seed, **options)
    for page in walk(lm, blocks, [site], tokens):
        with torch.no_grad():
            z = sae.encode(page.acts[site])
        on = z.value > 0
        latent = z.support.latent[on].long().cpu()
        total.index_add_(0, latent, z.value[on].double().cpu())
        times += torch.bincount(latent, minlength=len(times))
    return total / times.clamp(min=1)


def _counted(texts: dict[tuple[str, float], list[tuple[str, str]]], concept: str) -> dict[tuple[str, float], int]:
    return {key: sum(shows(prompt + new, concept) for prompt, new in rows) for key, rows in texts.items()}
