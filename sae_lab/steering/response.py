"""Dose and response: what a sweep of strengths does to what the model writes, beside three baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import plots
from ..intervals import plain_json
from ..models import LM, Edit
from ..reading import fitting
from ..saes import SAE
from ..sites import Site
from .baselines import ASKED, BASELINES, Beside, Examples
from .curves import Curve
from .measuring import Counts, Key, Text
from .pushes import Activity, Push, Recipe, activity, in_units, recipe, unit_direction
from .texts import Concept, openings, shows

UNTOUCHED = "untouched"
AT_ONCE = 64  # texts that are written at a time

Pushes = Push | Sequence[Push]
Row = tuple[str, float, tuple[Edit, ...]]


@dataclass(frozen=True, eq=False)
class Doses:
    """What interventions do at several strengths: to the texts' concept, to their quality, to other latents.

    Attributes:
        curves: by name: the untouched model, what was asked for, the baselines.
        side: the latents whose mean activation on the written text moved most from that on untouched text, in standard
            deviations of theirs on validation text; found on every second prompt, measured on the others.
        texts: (prompt, what was written) by name and strength.
        about: what was done, and which baselines there could not be.
    """

    curves: dict[str, Curve]
    side: pd.DataFrame
    texts: dict[tuple[str, float], list[tuple[str, str]]]
    about: dict[str, Any]

    def __getitem__(self, name: str) -> Curve:
        if name not in self.curves:
            raise KeyError(f"No intervention {name!r}. There are: {', '.join(self.curves)}.")
        return self.curves[name]

    @property
    def curve(self) -> Curve:
        """That of the first intervention."""
        return self.curves[self.about["interventions"][0]]

    @property
    def table(self) -> pd.DataFrame:
        """A row per intervention and strength: `effect` (share of texts with the concept), `kl` to the clean model on
        the same text and `ce` under it (nats per new token), `repetition` (share of 4-grams that were there before);
        each with its 95% interval over prompts."""
        return pd.concat([curve.table for curve in self.curves.values()], ignore_index=True)

    @property
    def figure(self):
        """Target effect against KL, a line per intervention (plotly)."""
        return plots.frontier(self.table)

    def to_json(self) -> dict[str, Any]:
        return plain_json({"about": self.about} | {n: getattr(self, n).to_dict("records") for n in ("table", "side")})

    def __repr__(self) -> str:
        shown = self.table[["intervention", "strength", "effect", "kl", "ce", "repetition"]]
        text = shown.to_string(index=False, float_format="{:.3g}".format, na_rep="")
        return f"Doses for {self.about['concept']} at {self.about['site']}, {len(self.curve.prompts)} prompts\n{text}"


def doses(
    sae: SAE,
    lm: LM,
    pushes: Pushes | dict[str, Pushes],
    concept: Concept,
    *,
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 3.0),
    prompts: int | Sequence[str] = 32,
    baselines: Sequence[str] = BASELINES,
    examples: Examples | None = None,
    wanted: str | None = None,
    site: str | Site | None = None,
    text: Any = None,
    max_new_tokens: int = 40,
    temperature: float = 0.7,
    seed: int = 0,
) -> Doses:
    """Sweeps the strengths of one or several interventions and measures all that they do, on the same prompts.

    Args:
        pushes: what is done at once; or several such, by name. Baselines are as long as the first, at its positions.
        concept: of the labelled world; or a function that finds one in a text.
        strengths: multiples of the pushes' own.
        prompts: how many openings of English test texts without the concept; or prompts of your own.
        examples: (texts with the concept, texts without) for the difference of means; default: validation texts of the
            world.
        wanted: what to ask for in the prompt, "a story about the garden"; default: by the concept's name.
        text: where latents are measured; default: the validation split of what the SAE was trained on.

    Raises:
        ValueError: as `steer`; an unknown baseline; fewer than two prompts, or one that shows the concept.
    """
    site, prompts = fitting(sae, lm, site), _prompts(lm, concept, prompts, seed)
    known = activity(sae, lm, site, text=text, seed=seed)
    lists = _lists(sae, lm, pushes, site, known)
    beside = Beside.of(lm, site.target, concept, prompts, baselines, examples, wanted, seed, temperature > 0)
    rows, length = _rows(sae, site, lists, beside, strengths, known)
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    found = _measured(sae, lm, site, rows, prompts, beside, how, seed)
    about = {"site": str(site), "model": lm.name, "interventions": list(lists), "length": length, "seed": seed, **how}
    about |= {"concept": _called(concept), "asked": beside.asked, "left_out": beside.left}
    return _result(lists, known, concept, prompts, *found, about)


def _prompts(lm: LM, concept: Concept, prompts: int | Sequence[str], seed: int) -> list[str]:
    if isinstance(prompts, int):
        prompts = openings(lm, concept, prompts, "test", seed)
    if isinstance(prompts, str) or len(prompts) < 2:
        raise ValueError(f"prompts={prompts!r}: one tells no interval, give at least two.")
    if told := [prompt for prompt in prompts if shows(prompt, concept)]:
        raise ValueError(f"The prompt {told[0]!r} shows the concept already: nothing could be said to bring it about.")
    return list(prompts)


def _called(concept: Concept) -> str:
    return concept if isinstance(concept, str) else getattr(concept, "__name__", "a function")


def _lists(sae: SAE, lm: LM, pushes: Pushes | dict[str, Pushes], site: Site, known: Activity) -> dict[str, list[Push]]:
    """Pushes by name of the intervention, with their units."""
    pushes = pushes if isinstance(pushes, dict) else {"": pushes}
    lists = {name: [p] if isinstance(p, Push) else list(p) for name, p in pushes.items()}
    if not lists or not all(lists.values()):
        raise ValueError("Nothing to push: give at least one Push(latent, mode, strength).")
    named = {n or " and ".join(f"{p.mode} {p.latent}" for p in some): some for n, some in lists.items()}
    if taken := [n for n in named if n in (UNTOUCHED, *BASELINES)]:
        raise ValueError(f"{taken[0]!r} is the name of a row beside the interventions: name yours otherwise.")
    return {name: in_units(sae, lm, some, site, known) for name, some in named.items()}


def _rows(
    sae: SAE, site: Site, lists: dict[str, list[Push]], beside: Beside, strengths: Sequence[float], known: Activity
) -> tuple[list[Row], float]:
    """(name, strength and edits of everything that is written with; the length of the first at strength 1)."""
    recipes: dict[str, Recipe] = {name: recipe(sae, site, some) for name, some in lists.items()}
    first = next(iter(lists.values()))
    rows = torch.stack([unit_direction(sae, p.latent) for p in first])
    sizes = [p.strength * (p.unit or known.maximum[p.latent].item()) for p in first]
    length = (rows * rows.new_tensor(sizes)[:, None]).sum(0).norm().item()
    for name, v in beside.vectors.items():
        recipes[name] = lambda s, v=v: (Edit(site.target, v, s * length, **first[0].where),)
    return [(UNTOUCHED, 0.0, ()), *((n, float(s), at(s)) for n, at in recipes.items() for s in strengths)], length


def _measured(
    sae: SAE,
    lm: LM,
    site: Site,
    rows: list[Row],
    prompts: list[str],
    beside: Beside,
    how: dict[str, Any],
    seed: int,
) -> tuple[list[Key], Counts, list[list[tuple[str, str]]]]:
    """(name and strength, sums, texts) of every row on every prompt; asking, if at all, is one more row."""
    keys = [(name, s) for name, s, _ in rows] + [(ASKED, 1.0)] * bool(beside.prompts)
    counts, texts = Counts(len(keys), len(prompts), sae.cfg.d_sae), [[] for _ in keys]
    edits, at_once = [e for *_, e in rows], max(1, AT_ONCE // len(rows))
    for first in range(0, len(prompts), at_once):
        part = prompts[first : first + at_once]
        written = lm.generate(part, edits, seed=seed + first, **how)
        for (p, e, _), new in zip(written.rows, written.texts):
            texts[e].append((part[p], new))
        read = [
            Text(e, first + p, head, head, new, edits[e]) for (p, e, _), (head, new) in zip(written.rows, written.ids)
        ]
        counts.add(lm, sae, site, read)
        if beside.prompts:
            more = lm.generate(beside.prompts[first : first + at_once], seed=seed + first, **how)
            texts[-1] += zip([""] * len(part) if beside.free else part, more.texts)
            heads = [
                behind[:1] if beside.free else written.ids[p * len(rows)][0] for p, (behind, _) in enumerate(more.ids)
            ]
            asked = [Text(len(rows), first + p, heads[p], *ids, ()) for p, ids in enumerate(more.ids)]
            counts.add(lm, sae, site, asked)
    return keys, counts, texts


def _result(
    lists: dict[str, list[Push]],
    known: Activity,
    concept: Concept,
    prompts: list[str],
    keys: list[Key],
    counts: Counts,
    texts: list[list[tuple[str, str]]],
    about: dict[str, Any],
) -> Doses:
    shown = np.array([[shows(prompt + new, concept) for prompt, new in row] for row in texts], float)
    curves = {}
    for name in dict.fromkeys(n for n, _ in keys):
        mine = [i for i, (n, _) in enumerate(keys) if n == name]
        sums = {number: total[mine] for number, total in counts.sums.items()}
        strengths = tuple(keys[i][1] for i in mine)
        curves[name] = Curve(name, about["concept"], tuple(prompts), strengths, shown[mine], sums)
    pushed = sorted({p.latent for some in lists.values() for p in some})
    return Doses(curves, counts.side(keys, known.spread.numpy(), pushed), dict(zip(keys, texts)), about)
