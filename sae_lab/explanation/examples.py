"""Held-out text cut into windows, and what latents did in them: explanations are made from one split and judged on
another."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from ..directions import Dictionary, nearest
from ..labelled import codes
from ..labels import lineages, token_concepts
from ..models import LM
from ..reading import walk
from ..saes import SAE
from ..sites import Site
from ..tiny import world
from ..tokens import Blocks

SHORTEST = 5  # tokens: a window of fewer shows nothing
QUANTILES = 10  # of a latent's activations, from each of which as many of its windows are drawn
NEIGHBOURS = 5  # latents of each kind that hard negatives are drawn from
MARKED = 0.3  # of the highest activation in a window: what is marked as firing, in every prompt and every score


@dataclass(frozen=True, eq=False)
class Reading:
    """One split of a text, read once.

    Attributes:
        words: the text of each token; special ones are left out everywhere.
        before: the token before each; `vocab` where a stretch of text begins.
        first: where each window begins, and where the last one ends; a window is of one stretch of text.
        doc: document of each window.
        acts: activations of the latents.
        labels: which labels each token carries; None of unlabelled text.
        names: of the labels.
    """

    words: list[str]
    ids: Int[np.ndarray, " tok"]
    before: Int[np.ndarray, " tok"]
    first: Int[np.ndarray, " edges"]
    doc: Int[np.ndarray, " windows"]
    acts: sparse.csc_array
    vocab: int
    labels: sparse.csc_array | None = None
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Reading({len(self.ids):,} tokens in {self.windows:,} windows)"

    @property
    def windows(self) -> int:
        return len(self.doc)

    @cached_property
    def long(self) -> Bool[np.ndarray, " windows"]:
        """Which windows can be examples."""
        return np.diff(self.first) >= SHORTEST

    @cached_property
    def window(self) -> Int[np.ndarray, " tok"]:
        """Which window each token is in."""
        return np.repeat(np.arange(self.windows), np.diff(self.first))

    @cached_property
    def texts(self) -> list[str]:
        """The text of each window."""
        return ["".join(self.words[a:b]) for a, b in zip(self.first[:-1], self.first[1:])]

    @cached_property
    def bags(self) -> sparse.csr_array:
        """How often each token id is in each window."""
        ids, first = self.ids.astype(np.int32), self.first.astype(np.int32)  # the only ones that sklearn takes
        found = sparse.csr_array((np.ones(len(ids)), ids, first), shape=(self.windows, self.vocab))
        found.sum_duplicates()
        return found

    @cached_property
    def by_token(self) -> sparse.csr_array:
        """`acts`, token by token."""
        return self.acts.tocsr()

    @cached_property
    def by_label(self) -> sparse.csr_array:
        """`labels`, token by token."""
        return self.labels.tocsr()

    def column(self, latent: int) -> tuple[Int[np.ndarray, " fired"], Float[np.ndarray, " fired"]]:
        """(tokens on which a latent fires, its activation there)."""
        span = slice(self.acts.indptr[latent], self.acts.indptr[latent + 1])
        return self.acts.indices[span], self.acts.data[span]

    def highest(self, latent: int) -> Float[np.ndarray, " windows"]:
        """A latent's highest activation in each window."""
        found, (token, value) = np.zeros(self.windows), self.column(latent)
        np.maximum.at(found, self.window[token], value)
        return found


@dataclass(frozen=True, eq=False)
class Example:
    """A window as one latent sees it."""

    reading: Reading
    window: int
    latent: int

    @property
    def span(self) -> slice:
        return slice(*self.reading.first[self.window : self.window + 2].tolist())

    @property
    def words(self) -> list[str]:
        return self.reading.words[self.span]

    @property
    def text(self) -> str:
        return "".join(self.words)

    @cached_property
    def values(self) -> Float[np.ndarray, " tok"]:
        """The latent's activation on each token."""
        span, (token, value) = self.span, self.reading.column(self.latent)
        low, high = np.searchsorted(token, [span.start, span.stop])
        found = np.zeros(span.stop - span.start)
        found[token[low:high] - span.start] = value[low:high]
        return found

    @property
    def fires(self) -> Bool[np.ndarray, " tok"]:
        """Which tokens are marked."""
        return (self.values > 0) & (self.values >= MARKED * self.values.max())

    def marked(self, on: Bool[np.ndarray, " _"] | None = None) -> str:
        """The text with <<...>> around stretches of tokens: those that fire, or others."""
        on, out = self.fires if on is None else on, []
        for i, word in enumerate(self.words):
            out += ["<<"] * bool(on[i] and (i == 0 or not on[i - 1])) + [word]
            out += [">>"] * bool(on[i] and (i + 1 == len(on) or not on[i + 1]))
        return "".join(out)

    def __repr__(self) -> str:
        return f"{self.values.max():.2f} {self.marked()!r}"


@dataclass(frozen=True)
class Sample:
    """Windows of one latent.

    Attributes:
        active: where it fires, as many of each quantile of activation, the strongest first.
        silent: where it does not, drawn from all such.
        hard: where it does not, but a neighbour does: one that often fires with it, or one of a similar direction.
        rate: share of all windows in which it fires.
    """

    active: tuple[Example, ...]
    silent: tuple[Example, ...]
    hard: tuple[Example, ...]
    rate: float


def read(sae: SAE, lm: LM, site: Site, blocks: Blocks, tokens: int, width: int) -> Reading:
    """At least `tokens` tokens in windows of at most `width`; with the labels of the world, if that is the text."""
    names = tuple(c.name for c in world.concepts())
    words, ids, before, starts, docs, acts, labels, seen = [], [], [], [], [], [], [], 0
    for page in walk(lm, blocks, [site], tokens, sae):
        block, keep = page.block, page.keep
        start, end, doc = (a[keep].numpy() for a in (block.start, block.end, block.doc))
        new = np.diff(page.stretch, prepend=-1) != 0
        until = np.where(np.append(new[1:], True), end, np.append(start[1:], 0))  # bytes of one letter: the last has it
        texts = {d: block.text(d) for d in set(doc.tolist())}
        words += [texts[d][a:b] for d, a, b in zip(doc.tolist(), start.tolist(), until.tolist())]
        place = np.arange(len(new)) - np.flatnonzero(new)[np.cumsum(new) - 1]
        here = block.ids[keep].numpy()
        cut = np.flatnonzero(place % width == 0)
        ids.append(here)
        before.append(np.where(place > 0, np.roll(here, 1), lm.vocab))
        starts.append(seen + cut)
        docs.append(page.doc[cut])
        acts.append(codes(sae, page.acts[site]))
        if isinstance(block.texts[0], world.Text):
            labels.append(token_concepts(block, keep, world.Concepts(names)))
        seen += len(here)
    known = (sparse.vstack(labels) @ lineages(names)).tocsc() if labels else None
    z = sparse.csc_array(sparse.vstack(acts))
    z.sort_indices()
    first = np.concatenate([*starts, [seen]])
    return Reading(
        words, np.concatenate(ids), np.concatenate(before), first, np.concatenate(docs), z, lm.vocab, known, names
    )


class Sampler:
    """Draws a latent's windows from a reading."""

    def __init__(self, directions: Dictionary, reading: Reading, n: int, seed: int):
        self.reading, self.n, self._seed, self._W = reading, n, seed, directions

    def __call__(self, latent: int) -> Sample:
        rng = np.random.default_rng([self._seed, latent])
        highest = self.reading.highest(latent)
        on, off = (np.flatnonzero(self.reading.long & side) for side in (highest > 0, highest == 0))
        hard = np.intersect1d(off, self._beside(latent))
        weakest_first = on[np.argsort(highest[on], kind="stable")]
        drawn = [
            rng.choice(part, min(len(part), size), replace=False)
            for part, size in zip(np.array_split(weakest_first, QUANTILES), _parts(self.n))
        ]
        active = np.concatenate(drawn).astype(int)
        active = active[np.argsort(-highest[active], kind="stable")]
        silent, hard = (rng.choice(w, min(len(w), self.n), replace=False) for w in (off, hard))
        kinds = (tuple(Example(self.reading, int(w), latent) for w in some) for some in (active, silent, hard))
        return Sample(*kinds, len(on) / max(1, len(on) + len(off)))

    def _beside(self, latent: int) -> Int[np.ndarray, " some"]:
        """Windows in which a neighbour fires."""
        near = [
            *self._together(latent),
            *nearest(self._W[[latent]], self._W, min(NEIGHBOURS + 1, len(self._W))).index[0].tolist(),
        ]
        tokens = [self.reading.column(other)[0] for other in near if other != latent]
        return np.unique(self.reading.window[np.concatenate(tokens)]) if tokens else np.zeros(0, int)

    def _together(self, latent: int) -> list[int]:
        """Those of the highest Jaccard index with a latent."""
        fired, acts = self.reading.column(latent)[0], self.reading.acts
        both = np.bincount(self.reading.by_token[fired].indices, minlength=acts.shape[1])
        jaccard = both / np.maximum(np.diff(acts.indptr) + len(fired) - both, 1)
        jaccard[latent] = 0
        best = np.argsort(-jaccard, kind="stable")[:NEIGHBOURS]
        return best[jaccard[best] > 0].tolist()


def _parts(n: int) -> list[int]:
    """n in as many parts as there are quantiles."""
    return [len(part) for part in np.array_split(np.arange(n), QUANTILES)]
