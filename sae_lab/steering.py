"""Steering: add a latent's direction while the model writes, and measure what changes in what it writes.

The unit of strength is the latent's own typical activation (the mean over tokens on which it fires), so that 1 means
"as if it fired once more". The control is a random latent's direction scaled to the same norm.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count, islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import plots
from .intervals import Estimate
from .models import LM, Edit, Generation
from .reading import held_out, home, own_text, walk
from .saes import SAE
from .shapes import Direction, PerLatent
from .sites import Site
from .tiny import world

POSITIVES = 50  # a concept with fewer held-out positives is not tried
MEANING = ("language", "register", "topic", "entity", "attribute", "sentiment")  # branches a reader can see in a text
GIVEN = "language.english"  # the language of all prompts
BABBLE = 3.0  # nats per token over the untouched text's surprise, from which a steered text counts as broken


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


def write(
    lm: LM, prompts: list[str], edits: dict[tuple[str, float], Edit | None], **writing: Any
) -> dict[tuple[str, float], list[tuple[str, str]]]:
    """Every prompt continued under every edit, 64 texts at a time: (prompt, continuation) by edit."""
    texts = {key: [] for key in edits}
    at_once = max(1, 64 // len(edits))
    for i in range(0, len(prompts), at_once):
        part = prompts[i : i + at_once]
        written = lm.generate(part, list(edits.values()), **writing | {"seed": writing.get("seed", 0) + i}).texts
        for n, key in enumerate(edits):
            texts[key] += list(zip(part, written[n :: len(edits)]))
    return texts


@torch.no_grad()
def surprise(lm: LM, texts: list[tuple[str, str]]) -> float:
    """Cross-entropy of continuations under the untouched model, nats per new token; `texts`: (prompt, continuation)."""
    total, count = 0.0, 0
    texts = [(prompt, new) for prompt, new in texts if new]
    for i in range(0, len(texts), 16):
        part = texts[i : i + 16]
        ids, mask = lm.encode([prompt + new for prompt, new in part])
        first = torch.tensor([lm.encode(prompt)[0].shape[1] for prompt, _ in part])
        new = mask & (torch.arange(ids.shape[1])[None] >= first[:, None])
        of = lm.logits(ids, mask)[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None].to(lm.device))[..., 0]
        total -= of.cpu()[new[:, 1:]].sum().item()
        count += int(new[:, 1:].sum())
    return total / max(1, count)


def openings(lm: LM, concept: str, n: int, split: str, seed: int, words: int = 8, among: int = 100) -> list[str]:
    """The first words of held-out texts that do not show a concept; texts in English, since steering is read there.

    Raises:
        ValueError: if fewer than `n` of the first `among * n` texts are without it.
    """
    found = []
    for text in islice(chain.from_iterable(english(block, seed, split) for block in count()), among * n):
        opening = " ".join(text.split(" ")[:words])
        if not shows(opening, concept) and not shows(text, concept):
            found.append(opening)
        if len(found) == n:
            return found
    raise ValueError(f"Nearly every English text shows {concept}: there is nothing to steer to. Take another concept.")


@lru_cache(maxsize=64)
def english(block: int, seed: int, split: str) -> tuple[str, ...]:
    """The English ones among the texts 100 * block to 100 * block + 99 of a split."""
    return tuple(text.text for text in world.block(block, 100, seed, split) if text.language == "en")


def shows(text: str, concept: str) -> bool:
    """Whether the recogniser finds a concept, or one below it, anywhere in a text."""
    return any(c == concept or c.startswith(concept + ".") for c in recognised(text))


@lru_cache(maxsize=4096)
def recognised(text: str) -> frozenset[str]:
    """The concepts that the recogniser finds in a text; the same texts are asked about for many concepts."""
    return frozenset(concept for *_, concept in world.recognise(text))


def typical_activation(
    sae: SAE, lm: LM, site: Site, *, text: Any = None, tokens: int = 20_000, seed: int = 0, **options: Any
) -> PerLatent:
    """Mean activation of each latent over the validation tokens on which it fires; 0 where it never does."""
    total, times = torch.zeros(2, sae.cfg.d_sae, dtype=torch.float64)
    text, options = own_text(sae, text, options)
    for page in walk(lm, held_out(lm, text, "validation", seed, **options), [site], tokens, sae):
        with torch.no_grad():
            z = sae.encode(page.acts[site])
        on = z.value > 0
        latent = z.support.latent[on].long().cpu()
        total.index_add_(0, latent, z.value[on].double().cpu())
        times += torch.bincount(latent, minlength=len(times))
    return total / times.clamp(min=1)


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
