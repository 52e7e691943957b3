"""The verb: the model continues a prompt with latents pushed, beside what it writes untouched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import pandas as pd
import torch

from .. import plots
from ..models import LM, Edit, Generation
from ..reading import fitting
from ..saes import SAE
from ..sites import Site
from .pushes import Push, Recipe, direction, in_units, recipe

TOP = 10  # tokens whose logits rose most, and as many that fell


@dataclass(frozen=True)
class Steered:
    """What the model wrote at each strength, side by side; iterate to see tokens as they come, and stop at any time.

    Attributes:
        generation: the writing itself; nothing runs unless it is asked for the next token.
        names: of the rows.
        edits: of the rows; none in that of the untouched model.
    """

    prompt: str
    generation: Generation
    names: tuple[str, ...]
    lm: LM
    edits: tuple[tuple[Edit, ...], ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row per strength: what was written, to the end."""
        return pd.DataFrame({"edit": self.names, "text": self.generation.texts})

    @cached_property
    def changes(self) -> pd.DataFrame:
        """What happens to the next token: for each edited row those whose logits rise and fall most."""
        rows = {name: edits for name, edits in zip(self.names, self.edits) if edits}
        return logit_changes(self.lm, self.prompt, rows)

    @property
    def figure(self):
        """How far the logits of the next token rise and fall (plotly)."""
        return plots.changes(self.changes)

    def to_json(self) -> dict[str, Any]:
        texts = self.table.to_dict("records")
        return {"prompt": self.prompt, "texts": texts, "changes": self.changes.to_dict("records")}

    def __iter__(self) -> Iterator:
        return iter(self.generation)

    def __repr__(self) -> str:
        return "\n".join(f"{name:>12}: {self.prompt}{text}" for name, text in zip(self.names, self.generation.texts))


def steer(
    sae: SAE,
    lm: LM,
    latents: dict[int, float] | Push | Sequence[Push],
    prompt: str,
    *,
    site: str | Site | None = None,
    scale: Sequence[float | None] = (None, 1.0),
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    text: Any = None,
) -> Steered:
    """Lets the model continue a prompt with latents pushed, all strengths in one generation.

    Args:
        latents: a `Push`, or several that act at once; or latent -> how much of its activation to add, in the SAE's
            own units: `{12: 4.0}` adds 4 times latent 12's decoder row.
        scale: multiples of the strengths, a row of text each; None is the untouched model, and so is 0 where all that
            is done is to add.
        text: where the maxima are measured that strengths are multiples of; default: what the SAE was trained on.

    Raises:
        ValueError: a latent the SAE does not have, or that never fires; positions that the prompt does not have; a
            prompt that leaves no room in the context.
    """
    site = fitting(sae, lm, site)
    if isinstance(latents, dict):
        if not latents:
            raise ValueError("latents={} names none: give at least one, {12: 4.0}.")
        vector = sum(amount * direction(sae, latent) for latent, amount in latents.items())
        if not vector.isfinite().all():
            raise ValueError(f"latents={latents}: amounts must be finite numbers.")
        at, adds = lambda s: (Edit(site.target, vector, s),), True
    else:
        at, adds = pushed(sae, lm, latents, site, text=text, seed=seed)
    if odd := [s for s in scale if s is not None and not isfinite(s)]:
        raise ValueError(f"scale={odd[0]} must be a finite number, or None for the untouched model.")
    edits = tuple(() if s is None or (adds and not s) else at(s) for s in scale)
    names = tuple(f"x {s:g}" if e else "untouched" for s, e in zip(scale, edits))
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    return Steered(prompt, lm.generate(prompt, edits, **how), names, lm, edits)


def pushed(sae: SAE, lm: LM, pushes: Push | Sequence[Push], site: Site, **measured: Any) -> tuple[Recipe, bool]:
    """(the edits at any multiple, whether all of them add)."""
    pushes = [pushes] if isinstance(pushes, Push) else list(pushes)
    if not pushes:
        raise ValueError("Nothing to push: give at least one Push(latent, mode, strength).")
    return recipe(sae, site, in_units(sae, lm, pushes, site, **measured)), all(p.mode == "add" for p in pushes)


@torch.no_grad()
def logit_changes(lm: LM, prompt: str, rows: dict[str, tuple[Edit, ...]], top: int = TOP) -> pd.DataFrame:
    """The tokens whose logits right behind a prompt rise and fall most under each row of edits; no special ones."""
    ids, _ = lm.encode(prompt)
    found = []
    clean, *steered = lm.edited(ids.expand(1 + len(rows), -1), [(), *rows.values()])[:, -1].float().cpu()
    p = clean.softmax(-1)
    for name, logits in zip(rows, steered):
        change, q = logits - clean, logits.softmax(-1)
        for way, sign in (("risen", 1), ("fallen", -1)):
            ranked = sign * change
            ranked[list(lm.special_ids)] = -torch.inf
            best = ranked.topk(min(top, len(ranked))).indices.tolist()
            numbers = zip(*(a[best].tolist() for a in (clean, logits, change, p, q)))
            found += [(name, way, word, *row) for word, row in zip(lm.words(best), numbers)]
    columns = ["edit", "way", "token", "before", "after", "change", "p_before", "p_after"]
    return pd.DataFrame(found, columns=columns)
