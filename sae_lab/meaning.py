"""Whether the latents that two seeds share mean the same: matched pairs, by cosine, against what they name and where
they fire.

No explanation is read: token rules would make one of the very firings that are compared. A latent names the concept of
the labelled world that a threshold on it tells best, and what the two of a pair name is chosen on different texts (the
validation and the test split, each way round), so that an accident of one text makes no agreement. What one latent
names on both texts is the ceiling of that; what it shares with another pair's partner is chance.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from . import plots
from .concepts import POSITIVES, latent_firings
from .evaluation.numbers import fitting
from .intervals import Estimate, draws, interval, rank_correlation
from .labels import lineages, token_concepts
from .matching import chance_floor, mcc
from .models import LM
from .reading import held_out, walk
from .recovery import HIGHEST, Firings, best_f1
from .saes import SAE
from .sites import Site
from .tiny import world

CUTS = (0.3, 0.5, 0.7, 0.9)  # of cosines into bins; at 0.7 `shared` begins
BINS = ("below 0.3", "0.3 to 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 and up")
LEAST = 20  # firings on each text, below which a latent is not judged
NAMES = 0.3  # F1 from which a latent names a concept
MEASURES = {
    "concept": "share of pairs that name the same concept, of those that name one",
    "jaccard": "tokens on which both fire, of those on which either does",
    "correlation": "correlation of the two activations over all tokens",
}
AGAINST = {"": "its match", "_chance": "another's match", "_ceiling": "itself, on other text"}


@dataclass(frozen=True)
class Agreement:
    """What matched latents of two SAEs agree on.

    Attributes:
        pairs: one row per judged pair: latents a and b, their decoder cosine, the concept that each names on the
            validation split ("" for none), and the measures; "_chance" is with another pair's partner, "_ceiling" with
            itself.
        about: what was measured on; how many pairs were matched, and how many of them judged.
    """

    pairs: pd.DataFrame
    about: dict[str, Any]

    def spearman(self, measure: str) -> Estimate:
        """Rank correlation of cosine and "concept", "jaccard" or "correlation", with its interval over pairs."""
        return rank_correlation(*self.pairs[["cosine", measure]].dropna().to_numpy().T)

    @property
    def table(self) -> pd.DataFrame:
        """One row per measure, bin of cosines and what a latent is compared with: the mean over pairs."""
        rows = []
        for name in MEASURES:
            for place, of in self.pairs.groupby(np.digitize(self.pairs["cosine"], CUTS)):
                at = {"bin": BINS[place], "cosine": of["cosine"].mean()}
                for suffix, against in AGAINST.items():
                    values = of[name + suffix].dropna().to_numpy() if name + suffix in of else ()
                    if len(values):
                        found = {"pairs": len(values), **_mean(values).to_json()}
                        rows.append({"number": name, "against": against, **at, **found})
        return pd.DataFrame(rows)

    @property
    def figure(self):
        """A panel per measure: its mean over the pairs of each bin of cosines (plotly)."""
        return plots.numbers(self.table, "cosine", {"cosine": "decoder cosine of the pair", **MEASURES}, by="against")

    def to_json(self) -> dict[str, Any]:
        ranks = {name: self.spearman(name).to_json() for name in MEASURES}
        return {"spearman": ranks, "bins": self.table.to_dict("records"), "about": self.about}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {self.spearman(name)}" for name in MEASURES)
        judged = f"{self.about['judged']:,} of {self.about['matched']:,} matched pairs"
        return f"Agreement of {judged} at {self.about['site']}; Spearman with their cosine: {shown}"


def agree(
    a: SAE, b: SAE, lm: LM, *, site: str | Site | None = None, tokens: int = 100_000, seed: int = 0, **options: Any
) -> Agreement:
    """Matches two SAEs one to one by decoder cosine and measures what the pairs agree on, on the labelled world.

    Args:
        tokens: of each of the two texts, at least. Where latents fire is compared on the test split.

    Raises:
        ValueError: SAEs of different sites, models or widths; too few latents that fire to judge any.
    """
    sites = [fitting(sae, lm, site) for sae in (a, b)]
    models = [sae.origin.get("model", lm.name) for sae in (a, b)]
    if len(set(sites)) > 1 or len(set(models)) > 1:
        raise ValueError(f"SAEs of {sites[0]} of {models[0]} and {sites[1]} of {models[1]}: give two of one place.")
    score, matched = mcc(a.W_dec, b.W_dec)
    partners = [matched.a.numpy(), matched.b.numpy()]
    texts = [_fired((a, b), lm, sites[0], split, tokens, seed, options) for split in ("validation", "test")]
    often = [
        np.bincount(f.unit, minlength=f.units)[at] >= LEAST for fired, _ in texts for f, at in zip(fired, partners)
    ]
    judged = np.logical_and.reduce(often)
    if judged.sum() < 3:
        raise ValueError(
            f"{judged.sum()} pairs fire {LEAST} times on {tokens:,} tokens of each text: give more tokens=."
        )
    partners = [at[judged] for at in partners]
    texts = [([f.only(at) for f, at in zip(fired, partners)], labels) for fired, labels in texts]
    other = _others(int(judged.sum()), np.random.default_rng(seed))
    columns = {"a": partners[0], "b": partners[1], "cosine": matched.cosine.numpy()[judged]}
    columns |= _named(texts, other) | _firing(*texts[1][0], other)
    about = {"site": str(sites[0]), "model": lm.name, "tokens": tokens, "seed": seed, "matched": len(judged)}
    about |= {"judged": int(judged.sum()), "mcc": score, "chance floor": chance_floor(a.cfg.d_in, len(judged))}
    return Agreement(pd.DataFrame(columns), about)


def _fired(saes: tuple[SAE, SAE], lm: LM, site: Site, split: str, tokens: int, seed: int, options: dict[str, Any]):
    """(firings of each SAE, labels) on one split of the world."""
    names, found, labels = tuple(c.name for c in world.concepts()), ([], []), []
    above = lineages(names)
    for page in walk(lm, held_out(lm, "world", split, seed, **options), [site], tokens, saes[0]):
        for sae, parts in zip(saes, found):
            parts.append(latent_firings(sae, page.acts[site].to(sae.W_dec.device)))
        labels.append(token_concepts(page.block, page.keep, world.Concepts(names)) @ above)
    return [Firings.joined(parts) for parts in found], sparse.vstack(labels).tocsr()


def _named(texts: list, other: np.ndarray) -> dict[str, np.ndarray]:
    """Of each pair, what its latents name on the first text, and whether they name the same across the texts."""
    counts = np.array([labels.sum(0) for _, labels in texts])
    usual = ((counts >= POSITIVES) & (counts <= [[HIGHEST * labels.shape[0]] for _, labels in texts])).all(0)
    if not usual.any():
        raise ValueError(f"No concept has {POSITIVES} tokens on each of the two texts: give more tokens=.")
    names = np.array([c.name for c in world.concepts()])[usual]
    f1 = [[best_f1(f, labels[:, usual].tocsr()) for f in fired] for fired, labels in texts]
    best = [[reached.argmax(1) for reached, _ in of] for of in f1]  # text, SAE -> latent's concept
    sure = [reached.max(1) >= NAMES for reached, _ in f1[0]]

    def same(partner: dict[int, np.ndarray]) -> np.ndarray:
        """What each latent names on the first text, and its partner on the second: a share of the two directions."""
        both = np.array([np.where(sure[i], best[0][i] == partner[i], np.nan) for i in (0, 1)])
        asked = np.isfinite(both).sum(0)
        return np.where(asked > 0, np.nansum(both, 0) / np.maximum(asked, 1), np.nan)

    called = {f"{'ab'[i]} names": np.where(sure[i], names[best[0][i]], "") for i in (0, 1)}
    return called | {
        "concept": same({0: best[1][1], 1: best[1][0]}),
        "concept_chance": same({0: best[1][1][other], 1: best[1][0][other]}),
        "concept_ceiling": same({0: best[1][0], 1: best[1][1]}),
    }


def _firing(a: Firings, b: Firings, other: np.ndarray) -> dict[str, np.ndarray]:
    """Jaccard and correlation of each pair's activations, and those with another pair's partner."""
    A, B, names = a.matrix, b.matrix, ("jaccard", "correlation")
    found = dict(zip(names, coincidence(A, B)))
    return found | dict(zip((f"{name}_chance" for name in names), coincidence(A, B[:, other])))


def coincidence(A: sparse.csc_array, B: sparse.csc_array) -> tuple[np.ndarray, np.ndarray]:
    """(Jaccard index of where they are positive, Pearson correlation) of each column of A with that of B."""
    n, both = A.shape[0], (A > 0).multiply(B > 0).sum(0)
    either = (A > 0).sum(0) + (B > 0).sum(0) - both
    mean_a, mean_b = A.sum(0) / n, B.sum(0) / n
    spread = np.sqrt((A.multiply(A).sum(0) / n - mean_a**2) * (B.multiply(B).sum(0) / n - mean_b**2))
    return both / either, (A.multiply(B).sum(0) / n - mean_a * mean_b) / spread


def _others(n: int, rng: np.random.Generator) -> np.ndarray:
    """A place other than its own for each of n."""
    order = rng.permutation(n)
    return order[np.argsort(np.roll(order, 1))]


def _mean(values: np.ndarray) -> Estimate:
    return interval(draws(len(values), 1000) @ values / len(values)) if len(values) > 1 else Estimate.mean(values)
