"""Concept recovery: how well single latents name the concepts of the labelled world, beside what chance and neurons do.

For each concept the best unit and its threshold are chosen on the validation split and scored on the test split. Beside
the latents stand a frozen random dictionary of the same width and k, and the layer's own units: MLP neurons and signed
residual dimensions. "matched" gives the latents as few candidates as there are neurons.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from . import plots
from .intervals import Estimate, draws, interval
from .labelled import lineages, page_labels
from .models import LM
from .reading import Page, held_out, home, walk
from .recovery import HIGHEST, Firings, Recovery, choose, score
from .saes import SAE, build
from .sites import Site
from .tiny import world
from .tokens import Blocks

POSITIVES = 50  # a concept with fewer held-out positives is shown but not averaged


@dataclass(frozen=True)
class Concepts:
    """Held-out F1 of the best unit per concept, for each kind of unit.

    Attributes:
        recoveries: per kind of unit ("latents", "random", "neurons", "matched") its counts and choices.
        kinds: "word", "context" or "relation" of each leaf of the tree, "inner" of the others.
    """

    recoveries: dict[str, Recovery]
    kinds: tuple[str, ...]
    about: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """One row per concept: the best latent, its threshold, its scores, and the F1 of the other units."""
        table = self.recoveries["latents"].table.rename(columns={"unit": "latent", "f1": "latents"})
        table.insert(1, "kind", self.kinds)
        for name in self.recoveries:
            table[name] = self.recoveries[name].table["f1"]
        return table.sort_values("latents", ascending=False, ignore_index=True)

    @property
    def named(self) -> pd.DataFrame:
        """The table's word concepts with at least 50 held-out positives."""
        return self.table.query(f"kind == 'word' and positives >= {POSITIVES}")

    def mean(self, units: str = "latents", kind: str = "word") -> Estimate:
        """Mean F1 over the concepts of a kind with at least 50 held-out positives."""
        recovery, counted = self.recoveries[units], self._counted(kind)
        if not counted.any():
            raise ValueError(f"No {kind} concept has {POSITIVES} positives here: measure on more tokens.")
        return interval(recovery.mean_f1(counted, draws(len(recovery.hit), 500)))

    def _counted(self, kind: str) -> np.ndarray:
        """Concepts of a kind that are frequent enough, and rare enough for a neuron's highest activations to hold."""
        positive = self.recoveries["latents"].positive.sum(0)
        usual = (positive >= POSITIVES) & (positive <= HIGHEST * self.about["tokens"])
        return (np.array(self.kinds) == kind) & usual

    @property
    def means(self) -> pd.DataFrame:
        """Mean F1 per kind of concept and kind of unit."""
        rows = []
        for kind in sorted(set(self.kinds), reverse=True):
            counted = self._counted(kind)
            if counted.any():
                means = {units: self.mean(units, kind).value for units in self.recoveries}
                rows.append({"concepts": kind, "how many": int(counted.sum())} | means)
        return pd.DataFrame(rows)

    @property
    def figure(self):
        """The best-named concepts, latents against neurons and a random dictionary (plotly)."""
        rows = self.table[self.table.positives.between(POSITIVES, HIGHEST * self.about["tokens"])]
        return plots.recovered(
            rows, {"latents": "best latent", "neurons": "best neuron", "random": "random dictionary"}
        )

    def to_json(self) -> dict[str, Any]:
        return {units: self.mean(units).to_json() for units in self.recoveries} | {"about": self.about}

    def __repr__(self) -> str:
        shown = ", ".join(f"{units} {self.mean(units)}" for units in self.recoveries)
        return f"Concepts, mean best F1 of word concepts on {self.about['tokens']:,} held-out tokens: {shown}"


def recover(
    sae: SAE, lm: LM, *, site: str | Site | None = None, tokens: int = 100_000, seed: int = 0, **options: Any
) -> Concepts:
    """Names the best latent of every concept of the world, and says how well it does on text it was not chosen on.

    Args:
        tokens: how many tokens each of the two splits (validation to choose, test to score) has.
    """
    site = home(sae, site)
    hidden = Site(f"L{site.layer}N")
    first = next(walk(lm, held_out(lm, "world", "validation", seed, **options), [site], 1, sae)).acts[site]
    k = max(1, round(float(sae.encode(first).l0)))
    chance = build("random", d_in=sae.cfg.d_in, d_sae=sae.cfg.d_sae, k=min(k, 512), seed=seed).to(sae.W_dec.device)
    chance.prepare(first, first)
    units: dict[str, Callable[[Page], Firings]] = {
        "latents": lambda page: _of_latents(sae, page.acts[site]),
        "random": lambda page: _of_latents(chance, page.acts[site]),
        "neurons": lambda page: _of_neurons(page.acts[hidden], page.acts[site]),
    }
    concepts = world.concepts()
    names = tuple(c.name for c in concepts)
    (chosen_on, labels, _), (scored_on, truth, doc) = (
        _collect(sae, lm, held_out(lm, "world", split, seed, **options), [site, hidden], units, names, tokens)
        for split in ("validation", "test")
    )
    few = _matched(chosen_on, seed)
    for firings in (chosen_on, scored_on):
        firings["matched"] = firings["latents"].only(few)
    recoveries = {n: score(f, truth, choose(chosen_on[n], labels), doc, names) for n, f in scored_on.items()}
    about = {"site": str(site), "tokens": len(doc), "seed": seed, "k of random": k}
    about |= {f"{name} candidates": chosen_on[name].units for name in units}
    return Concepts(recoveries, tuple(c.kind if c.leaf else "inner" for c in concepts), about)


def _matched(firings: dict[str, Firings], seed: int) -> np.ndarray:
    """As many latents, drawn at random, as there are neurons."""
    n = min(firings["latents"].units, firings["neurons"].units)
    return np.sort(np.random.default_rng(seed).permutation(firings["latents"].units)[:n])


def _collect(
    sae: SAE, lm: LM, blocks: Blocks, sites: list[Site], units: dict[str, Callable], names: tuple, tokens: int
):
    """Firings of each kind of unit, labels and documents, one row per kept token."""
    found, labels, docs, seen, above = {name: [] for name in units}, [], [], 0, lineages(names)
    for page in walk(lm, blocks, sites, tokens, sae):
        for name, fire in units.items():
            found[name].append((seen, fire(page)))
        labels.append(page_labels(page, world.Concepts(names)) @ above)
        docs.append(page.doc)
        seen += len(page.doc)
    return {name: _joined(parts, seen) for name, parts in found.items()}, sparse.vstack(labels), np.concatenate(docs)


def _joined(parts: list[tuple[int, Firings]], tokens: int) -> Firings:
    unit = np.concatenate([f.unit for _, f in parts])
    token = np.concatenate([f.token + start for start, f in parts])
    return Firings(unit, token, np.concatenate([f.value for _, f in parts]), parts[0][1].units, tokens)


@torch.no_grad()
def _of_latents(sae: SAE, x: Tensor) -> Firings:
    z = sae.encode(x)
    on = z.value > 0
    latent, token = z.support.latent[on].int().cpu().numpy(), z.support.token[on].int().cpu().numpy()
    return Firings(latent, token, z.value[on].float().cpu().numpy(), sae.cfg.d_sae, len(x))


def _of_neurons(hidden: Tensor, x: Tensor) -> Firings:
    """MLP neurons and dimensions of the site, each once with either sign."""
    both = torch.cat([hidden, x], dim=1).cpu().numpy()
    return Firings.of_dense(np.concatenate([both, -both], axis=1))
