"""Splitting: what became of a narrow dictionary's latents in a wider one, beside what another seed makes of them.

Parents are chosen on the validation split, by decoder cosine and co-firing, and all that is said of them is counted on
the test split. Most latents that a wide dictionary has and a narrow one lacks are in no second wide dictionary either:
so every share stands beside the same share between two seeds of one width (the null), and a child's cosine must be one
that few latents of the null have with any but their own match, and hardly any random direction has at all.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from ..directions import Neighbours, chance_cosine, nearest
from ..families import Families, Rule, Tree, adopted, fired, strays, together
from ..intervals import Redrawn
from ..labels import lineages, token_concepts
from ..models import LM, load_model
from ..reading import Page, held_out, one_home, own_text, walk
from ..recovery import likest
from ..saes import SAE
from ..sites import Site
from ..tiny import world
from .results import Link, Splitting

NEAR = 8  # latents of the narrow dictionary that can be a wide one's parent: its nearest by cosine
STRAYS = 0.95  # share of the null's latents without a match whose cosine is too small for a child
CHANCE = 0.999  # share of random directions whose cosine is

Firing = dict[int, sparse.csc_array]  # by the SAE's id: where its latents fire, [tokens, d_sae]


class Part(NamedTuple):
    """Some latents of an SAE: all of them, or those of a level."""

    sae: SAE
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.sae.name} {self.first:,} to {self.last:,}" if self.first else f"{self.sae.name} {self.last:,}"

    @property
    def latents(self) -> slice:
        return slice(self.first, self.last)

    @property
    def directions(self) -> Tensor:
        return self.sae.W_dec[self.latents]


Pair = tuple[Part, Part]


def split(
    saes: SAE | Sequence[SAE],
    lm: LM | None = None,
    *,
    null: Sequence[SAE] = (),
    site: str | Site | None = None,
    text: Any = None,
    tokens: int = 100_000,
    cosine: float | None = None,
    inside: float = 0.5,
    cover: float = 0.5,
    overlap: float = 0.5,
    seed: int = 0,
    redrawn: int = 100,
    **options: Any,
) -> Splitting:
    """What latents of a narrow SAE have become in a wider one of the same site, or those of one Matryoshka level in the
    next.

    Args:
        saes: of two or more widths; or one SAE with levels, whose first ones are the parents of the next one's latents.
        lm: the model; default: the one they were trained on.
        null: two seeds of one width for every width but the first; of fewer, each width takes the nearest. For levels:
            two seeds of such an SAE, each level being compared with itself.
        text: as in `sl.activations`; default: what the first SAE was trained on.
        tokens: how many on each of the two splits: validation to choose parents, test to count.
        cosine: the least of a child; default: by the null and by random directions. This and the rest: see
            `families.Rule`.
        redrawn: resamplings of the documents, for intervals.

    Raises:
        ValueError: for SAEs of one width, of several sites, models or d_in, or nulls that are no pairs.
    """
    saes, null = [saes] if isinstance(saes, SAE) else list(saes), list(null)
    pairs, nulls = _pairs(saes), _nulls(saes, null)
    every = list({id(sae): sae for sae in (*saes, *null)}.values())
    site = one_home(every, site)
    lm = lm or load_model(every[0].origin.get("model", "tiny"), dtype=every[0].origin.get("dtype"))
    text, options = own_text(every[0], text, options)
    names = tuple(c.name for c in world.concepts()) if text == "world" else ()

    def read(part: str) -> Iterator[tuple[Page, Firing]]:
        for page in walk(lm, held_out(lm, text, part, seed, **options), [site], tokens, every[0]):
            with torch.no_grad():
                yield page, {id(sae): fired(sae.encode(page.acts[site].to(sae.W_dec.device))) for sae in every}

    meetings = {pair: Meeting(*pair) for pair in (*pairs, *nulls)}
    concepts = _choose(read("validation"), list(meetings.values()), names)
    loose = np.concatenate([meetings[pair].strays for pair in nulls] or [[-1.0]])
    chance = chance_cosine(every[0].cfg.d_in, max(old.last for old, _ in pairs), CHANCE)
    rule = Rule(max(chance, float(np.quantile(loose, STRAYS))) if cosine is None else cosine, inside, cover, overlap)
    trees = {pair: Tree(m.parents(rule), len(m.times[0])) for pair, m in meetings.items()}
    tokens, documents = _count(read("test"), trees, Redrawn(redrawn, seed))

    def link(pair: Pair, null: Link | None = None) -> Link:
        old, new = pair
        alive = tuple(times >= rule.least for times in meetings[pair].times)
        families = Families(trees[pair], meetings[pair].near, alive, rule)
        known = tuple(concepts[id(p.sae)].iloc[p.latents].reset_index(drop=True) for p in pair) if names else ()
        return Link(old.name, new.name, every[0].cfg.d_in, families, known, null)

    made = {pair: link(pair) for pair in nulls}
    links = tuple(link(pair, made.get(_closest(pair, nulls))) for pair in pairs)
    about = {"site": str(site), "model": lm.name, "text": text if isinstance(text, str) else "the given texts"}
    about |= {"tokens": tokens, "documents": documents, "seed": seed, "chance cosine": chance, "rule": asdict(rule)}
    return Splitting(links, about)


class Meeting:
    """Which latents of two dictionaries could be parent and child, and how often these fire together."""

    def __init__(self, old: Part, new: Part):
        self.parts = (old, new)
        self.near = nearest(new.directions, old.directions, min(NEAR, len(old.directions)))
        self.common = np.zeros(self.near.index.shape)
        self.times = [np.zeros(len(part.directions)) for part in self.parts]

    def add(self, firing: Firing) -> None:
        old, new = (firing[id(part.sae)][:, part.latents] for part in self.parts)
        child = np.repeat(np.arange(len(self.common)), self.common.shape[1])
        self.common += together(new, old, child, self.near.index.ravel()).sum(0).reshape(self.common.shape)
        for times, matrix in zip(self.times, (old, new)):
            times += matrix.sum(0)

    def parents(self, rule: Rule) -> Int[np.ndarray, " children"]:
        return adopted(self.near, self.common, self.times[1], rule)

    @property
    def strays(self) -> Float[np.ndarray, " some"]:
        """Best cosines of living latents of the one that have no match of their own in the other."""
        alive = self.times[1] >= Rule.least
        return strays(Neighbours(self.near.index[alive], self.near.cosine[alive]))


def _choose(pages: Iterable[tuple[Page, Firing]], meetings: list[Meeting], names: tuple[str, ...]):
    """Fills the meetings; each SAE's latents with their best concepts, where the text is the world."""
    hits, times, positives = {}, {}, 0
    above = lineages(names) if names else None
    for page, firing in pages:
        for meeting in meetings:
            meeting.add(firing)
        if names:
            labels = (token_concepts(page.block, page.keep, world.Concepts(names)) @ above).astype(float)
            positives = positives + labels.sum(0)
            for key, matrix in firing.items():
                hits[key] = hits.get(key, 0) + (matrix.T @ labels).toarray()
                times[key] = times.get(key, 0) + matrix.sum(0)
    best = {key: likest(hits[key], times[key], positives) for key in hits}
    return {k: pd.DataFrame({"concept": np.array(names)[i], "f1": f1, "id": i}) for k, (i, f1) in best.items()}


def _count(pages: Iterable[tuple[Page, Firing]], trees: dict[Pair, Tree], redrawn: Redrawn) -> tuple[int, int]:
    """Fills the trees; how many tokens and documents there were."""
    tokens = documents = 0
    for page, firing in pages:
        tokens, documents, weights = tokens + len(page.doc), max(documents, int(page.doc.max()) + 1), redrawn(page.doc)
        for pair, tree in trees.items():
            tree.add(*(firing[id(part.sae)][:, part.latents] for part in pair), weights)
    return tokens, documents


def _pairs(saes: list[SAE]) -> list[Pair]:
    """Each width with the next; or of one SAE the first levels together with the next one."""
    if len(saes) == 1 and hasattr(saes[0].cfg, "bounds"):
        sae, bounds = saes[0], saes[0].cfg.bounds
        return [(Part(sae, 0, a), Part(sae, a, b)) for a, b in pairwise(bounds)]
    saes = sorted(saes, key=lambda sae: sae.cfg.d_sae)
    widths = [sae.cfg.d_sae for sae in saes]
    if len(saes) < 2 or len(set(widths)) < len(widths):
        raise ValueError(
            f"split() got widths {widths}: give SAEs of two or more widths, one of each (two seeds of one width are "
            "null=), or one SAE with levels."
        )
    return list(pairwise(Part(sae, 0, sae.cfg.d_sae) for sae in saes))


def _nulls(saes: list[SAE], null: list[SAE]) -> list[Pair]:
    """Two seeds of one width, level by level where levels are studied."""
    null = sorted(null, key=lambda sae: sae.cfg.d_sae)
    found = list(zip(null[::2], null[1::2]))
    if len(null) % 2 or any(a is b or a.cfg.d_sae != b.cfg.d_sae for a, b in found):
        widths = [sae.cfg.d_sae for sae in null]
        raise ValueError(f"null= has widths {widths}: give two SAEs of one width, or two of each of several.")
    if len(saes) > 1:
        return [(Part(a, 0, a.cfg.d_sae), Part(b, 0, b.cfg.d_sae)) for a, b in found]
    if any(getattr(sae.cfg, "bounds", None) != saes[0].cfg.bounds for sae in null):
        raise ValueError(f"null= must have the levels of the SAE, which end at {saes[0].cfg.bounds}.")
    return [(Part(a, *span), Part(b, *span)) for a, b in found for span in pairwise(saes[0].cfg.bounds)]


def _closest(pair: Pair, nulls: list[Pair]) -> Pair | None:
    """The null of a pair: that of the nearest width, or of the same level."""
    return min(nulls, key=lambda null: abs(np.log(null[1].last / pair[1].last)), default=None)
