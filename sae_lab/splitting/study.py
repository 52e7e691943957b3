"""Splitting: what became of a narrow dictionary's latents in a wider one, beside what another seed makes of them.

Parents are chosen on the validation split, by decoder cosine and co-firing, and all that is said of them is counted on
the test split. Most latents that a wide dictionary has and a narrow one lacks are in no second wide dictionary either:
so every share stands beside the same share between two seeds of one width (the null), and a child's cosine must be one
that few latents of the null have with any but their own match, and hardly any random direction has at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..directions import chance_cosine, nearest
from ..families import Families, Meeting, Rule, Tree, fired
from ..intervals import Redrawn
from ..labels import lineages, token_concepts
from ..models import LM
from ..reading import Page, held_out, model_of, one_home, own_text, walk
from ..recovery import Naming
from ..saes import SAE
from ..sites import Site
from ..tiny import world
from .results import Link, Splitting

NEAR = 8  # latents of the narrow dictionary that can be a wide one's parent: its nearest by cosine
STRAYS = 0.95  # share of the null's latents without a match whose cosine is too small for a child
LIFT = 3.0  # of a level's children: how much more often than elsewhere their parent fires where they do
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
    def seed(self) -> int:
        return self.sae.cfg.seed

    @property
    def directions(self) -> Tensor:
        return self.sae.W_dec[self.latents]

    def of(self, firing: Firing) -> sparse.csc_array:
        return firing[id(self.sae)][:, self.latents]


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
    study = Study(_pairs(saes), _nulls(saes, null), [*saes, *null], lm, site, text, tokens, seed, options)
    study.choose()
    lift = LIFT if study.levels else 0.0
    rule = Rule(study.least() if cosine is None else cosine, inside, lift, cover, overlap)
    trees = study.count(rule, Redrawn(redrawn, seed))
    nulls = {pair: study.link(pair, trees[pair], rule) for pair in study.nulls}
    links = (study.link(p, trees[p], rule, nulls.get(_closest(p, study.nulls))) for p in study.pairs)
    return Splitting(tuple(links), study.about | {"rule": asdict(rule)})


class Study:
    """Pairs of dictionaries, and what is counted of them while the model reads."""

    def __init__(self, pairs: list[Pair], nulls: list[Pair], saes: list[SAE], lm, site, text, tokens, seed, options):
        self.pairs, self.nulls, self.tokens, self.seed = pairs, nulls, tokens, seed
        self.saes = list({id(sae): sae for sae in saes}.values())
        self.site, first = one_home(self.saes, site), self.saes[0]
        self.lm = lm or model_of(first)
        self.text, self.options = own_text(first, text, options)
        self.levels = any(old.sae is new.sae for old, new in pairs)
        self.meetings = {pair: self._meeting(*pair) for pair in (*pairs, *nulls)}
        self.naming = Naming()
        starts = [f"{a.name} and {b.name}" for a, b in self.meetings if a.sae is not b.sae and a.seed == b.seed]
        named = self.text if isinstance(self.text, str) else "the given texts"
        self.about = {"site": str(self.site), "model": self.lm.name, "text": named, "seed": seed, "same start": starts}

    def _meeting(self, old: Part, new: Part) -> Meeting:
        a, b = old.directions, new.directions
        return Meeting(a, b, None if self.levels else nearest(b, a, min(NEAR, len(a))))

    def read(self, split: str) -> Iterator[tuple[Page, Firing]]:
        """Pages, with where each SAE's latents fire: one forward pass and one encoding of each."""
        blocks = held_out(self.lm, self.text, split, self.seed, **self.options)
        for page in walk(self.lm, blocks, [self.site], self.tokens, self.saes[0]):
            with torch.no_grad():
                x = page.acts[self.site]
                yield page, {id(sae): fired(sae.encode(x.to(sae.W_dec.device))) for sae in self.saes}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The world's concepts, where the text has them."""
        return tuple(c.name for c in world.concepts()) if self.text == "world" else ()

    def choose(self) -> None:
        """Who could be whose parent, and what names each latent: on the validation split."""
        above = lineages(self.names) if self.names else None
        for page, firing in self.read("validation"):
            for pair, meeting in self.meetings.items():
                meeting.add(*(part.of(firing) for part in pair))
            if self.names:
                self.naming.add(firing, token_concepts(page.block, page.keep, world.Concepts(self.names)) @ above)
        for meeting in self.meetings.values():
            meeting.settle(min(NEAR, len(meeting.old)))

    def least(self) -> float:
        """The least cosine of a child, by chance and by the null; a level's children need not be like their parents."""
        if self.levels:
            return -1.0
        chance = chance_cosine(self.saes[0].cfg.d_in, max(old.last for old, _ in self.pairs), CHANCE)
        loose = np.concatenate([self.meetings[pair].strays for pair in self.nulls] or [np.zeros(0)])
        return max(chance, float(np.quantile(loose, STRAYS))) if len(loose) else chance

    def count(self, rule: Rule, redrawn: Redrawn) -> dict[Pair, Tree]:
        """What parents and children do on the test split."""
        trees = {pair: Tree(meeting.parents(rule), len(meeting.old)) for pair, meeting in self.meetings.items()}
        tokens = documents = 0
        for page, firing in self.read("test"):
            weights = redrawn(page.doc)
            tokens, documents = tokens + len(page.doc), max(documents, int(page.doc.max()) + 1)
            for pair, tree in trees.items():
                tree.add(*(part.of(firing) for part in pair), weights)
        self.about |= {"tokens": tokens, "documents": documents}
        return trees

    def link(self, pair: Pair, tree: Tree, rule: Rule, null: Link | None = None) -> Link:
        (old, new), meeting = pair, self.meetings[pair]
        alive = tuple(times >= rule.least for times in meeting.times)
        best = [self.naming.best(id(p.sae), self.names)[p.latents].reset_index(drop=True) for p in pair if self.names]
        return Link(old.name, new.name, Families(tree, meeting.near, alive, rule, old.sae.cfg.d_in), tuple(best), null)


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
