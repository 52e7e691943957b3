"""Where latents' directions lie: one map of several dictionaries, neighbours across them, clusters, dimensions.

The map is UMAP of exact cosine neighbours, made by a process of its own and kept by content; until it is ready there is
PCA. A picture of directions shows who is near whom; distances between groups and their sizes in it mean little.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from . import plots
from .directions import Neighbours, chance_below, dimension, nearest, trustworthiness, unit
from .families import fired
from .labels import lineages, token_concepts
from .models import LM
from .reading import held_out, one_home, own_text, walk
from .recovery import Naming
from .runs.kept import Kept, given, keep
from .saes import SAE
from .sites import Site
from .tiny import world

MODULE = "sae_lab.geometry"
NAMED = 0.3  # F1 from which on a latent is coloured by its concept


@dataclass(frozen=True)
class LatentMap:
    """Latents of several dictionaries in one plane; a row of everything is a latent, dictionary after dictionary.

    Attributes:
        names: of the dictionaries.
        latents: one row per latent: its dictionary, its number, and, where a model read text, density, concept and F1.
        directions: of unit length.
        near: each latent's exact neighbours among all others.
        pca: the two principal components of the directions; always there.
    """

    names: tuple[str, ...]
    latents: pd.DataFrame
    directions: Float[Tensor, "rows d_in"]
    near: Neighbours
    pca: Float[np.ndarray, "rows 2"]
    about: dict[str, Any]
    _kept: Kept = field(repr=False)

    @property
    def ready(self) -> bool:
        """Whether UMAP is there."""
        return self._kept.ready

    def wait(self, timeout: float | None = None) -> "LatentMap":
        """This map once UMAP is there: seconds for a thousand latents, minutes for a hundred thousand.

        Raises:
            TimeoutError: if it takes longer than `timeout` seconds.
            RuntimeError: if its process failed.
        """
        self._kept.wait(timeout)
        return self

    @cached_property
    def umap(self) -> Float[np.ndarray, "rows 2"]:
        """The layout.

        Raises:
            RuntimeError: while it is being made.
        """
        if not self.ready:
            raise RuntimeError(f"UMAP of {len(self.latents):,} latents is being made: .wait(), or look at .pca.")
        return self._kept.wait()["layout"].numpy()

    @cached_property
    def trustworthiness(self) -> dict[str, float]:
        """How far neighbours in each picture are neighbours by cosine: 1 where all are, 0.5 by chance."""
        shown = {"pca": self.pca} | ({"umap": self.umap} if self.ready else {})
        k = min(self.near.index.shape[1], (len(self.latents) - 1) // 2)
        return {name: trustworthiness(self.directions, _in_picture(xy, k)) for name, xy in shown.items()}

    @cached_property
    def clusters(self) -> Int[np.ndarray, " rows"]:
        """Groups in the UMAP (HDBSCAN); -1 for latents in none.

        Raises:
            RuntimeError: while UMAP is being made.
        """
        from sklearn.cluster import HDBSCAN

        return HDBSCAN(min_cluster_size=max(5, len(self.latents) // 400), copy=True).fit_predict(self.umap)

    def neighbours(self, latent: int, dictionary: int = 0, n: int = 5) -> pd.DataFrame:
        """The n latents of every dictionary whose directions are nearest to one latent's.

        Raises:
            ValueError: for a latent or a dictionary that is not here.
        """
        if not 0 <= dictionary < len(self.names):
            raise ValueError(f"No dictionary {dictionary}: there are 0 to {len(self.names) - 1}.")
        mine = self._groups[dictionary]
        if not 0 <= latent < len(mine):
            raise ValueError(f"No latent {latent}: {self.names[dictionary]} has latents 0 to {len(mine) - 1}.")
        found = []
        for rows in self._groups:
            others = rows[rows != mine[latent]]
            near = nearest(self.directions[mine[latent]][None], self.directions[others], min(n, len(others)))
            found.append(self.latents.iloc[others[near.index[0]]].assign(cosine=near.cosine[0]))
        table = pd.concat(found, ignore_index=True)
        return table.assign(name=[self.names[d] for d in table["dictionary"]])

    @property
    def table(self) -> pd.DataFrame:
        """One row per dictionary: latents, how many dimensions they span, and their best cosine within and across."""
        rows = []
        for d, mine in enumerate(self._groups):
            spanned, curves = dimension(self.directions[mine]), self._best(d)
            row = {"dictionary": self.names[d], "latents": len(mine), "participation": spanned.participation}
            row |= {"random participation": spanned.chance, "entropy dimension": spanned.entropy}
            rows.append(row | {f"median cosine {where}": float(np.median(c)) for where, c in curves.items()})
        return pd.DataFrame(rows)

    @property
    def _groups(self) -> list[Int[np.ndarray, " rows"]]:
        """The rows of each dictionary."""
        return [np.flatnonzero(self.latents["dictionary"] == d) for d in range(len(self.names))]

    def _best(self, dictionary: int) -> dict[str, Float[np.ndarray, " _"]]:
        """The largest cosine of each of its latents with another of its own, and with one of every other dictionary."""
        groups = self._groups
        mine = self.directions[groups[dictionary]]
        return {
            self.names[d]: nearest(mine, self.directions[rows], 1, themselves=d == dictionary).cosine[:, 0]
            for d, rows in enumerate(groups)
        }

    @property
    def figure(self):
        """The map, coloured by dictionary; by PCA while UMAP is being made (plotly)."""
        return self.coloured("dictionary")

    def coloured(self, by: str):
        """The map coloured by "dictionary", "density", "cluster" or "concept" (plotly).

        Raises:
            ValueError: for another colour, or one that only a model that reads text gives.
        """
        known = ["dictionary", "cluster", *(c for c in ("density", "concept") if c in self.latents)]
        if by not in known:
            missing = " Give map_latents(lm=) for density and concept." if by in ("density", "concept") else ""
            raise ValueError(f"No colour {by!r}. Known here: {', '.join(known)}.{missing}")
        shown = self.latents.assign(name=[self.names[d] for d in self.latents["dictionary"]])
        shown[["x", "y"]] = self.umap if self.ready else self.pca
        if by == "cluster":
            shown["cluster"] = ["none" if c < 0 else f"cluster {c}" for c in self.clusters]
        if by == "concept":  # by its top level: there are hundreds
            shown["concept"] = shown["concept"].str.partition(".")[0].where(shown["f1"] >= NAMED, "none")
        if by == "density":
            shown["density"] = np.log10(shown["density"].clip(lower=1e-6))
        column = "name" if by == "dictionary" else by
        return plots.scatter(shown, column, "UMAP" if self.ready else "PCA (UMAP is being made)")

    @property
    def cosines(self):
        """How near each latent's nearest is, within each dictionary and across, beside random directions (plotly)."""
        edges, d_in = np.arange(-0.1, 1.01, 0.02), self.directions.shape[1]
        curves = {}
        for d, name in enumerate(self.names):
            for other, best in self._best(d).items():
                curves[f"{name} in {other}"] = np.histogram(best, edges)[0] / len(best)
        for n in sorted(set(self.latents["dictionary"].value_counts())):
            curves[f"{n:,} random directions"] = np.diff(chance_below(edges, d_in, n))
        return plots.cosines(pd.DataFrame(curves, index=(edges[:-1] + edges[1:]) / 2))

    def to_json(self) -> dict[str, Any]:
        said = {"dictionaries": self.table.to_dict("records"), "trustworthiness": self.trustworthiness}
        groups = {"clusters": int(self.clusters.max()) + 1} if self.ready else {}
        return said | groups | {"about": self.about}

    def __repr__(self) -> str:
        held = f"{len(self.latents):,} latents of {', '.join(self.names)} at {self.about['site']}"
        return f"LatentMap of {held}: UMAP {'ready' if self.ready else 'being made, PCA meanwhile'}"


def map_latents(
    saes: SAE | Sequence[SAE],
    lm: LM | None = None,
    *,
    site: str | Site | None = None,
    text: Any = None,
    tokens: int = 50_000,
    neighbours: int = 15,
    min_dist: float = 0.05,
    seed: int = 0,
    **options: Any,
) -> LatentMap:
    """One map of the decoder directions of several SAEs of a site.

    It returns at once, with PCA; `.wait()` for UMAP, which is there already where these weights were mapped before.

    Args:
        lm: if given, reads `tokens` of held-out text (its validation split), so that latents have a density and, on the
            world, a concept.
        neighbours: of each latent that UMAP tries to keep.
        min_dist: how near UMAP puts latents at least.

    Raises:
        ValueError: for SAEs of several sites, models or d_in, or too few latents.
    """
    saes = [saes] if isinstance(saes, SAE) else list(saes)
    site, widths = one_home(saes, site), [sae.cfg.d_sae for sae in saes]
    if sum(widths) <= 2 * neighbours:
        raise ValueError(f"{sum(widths)} latents are too few for neighbours={neighbours}: ask for fewer neighbours.")
    directions = torch.cat([unit(sae.W_dec).cpu() for sae in saes])
    near = nearest(directions, directions, neighbours, themselves=True)
    settings = {"neighbours": neighbours, "min_dist": min_dist, "seed": seed, "umap": version("umap-learn")}
    kept = Kept(MODULE, {"directions": directions}, settings)
    kept.start(index=torch.from_numpy(near.index), cosine=torch.from_numpy(near.cosine))
    latents = pd.DataFrame({"dictionary": np.repeat(np.arange(len(saes)), widths)})
    latents["latent"] = np.concatenate([np.arange(n) for n in widths])
    about = {"site": str(site), "d_in": saes[0].cfg.d_in} | settings
    if lm is not None:
        latents = latents.join(heard(saes, lm, site, text, tokens, seed, **options))
    names = tuple(f"{i} {sae.name} {sae.cfg.d_sae:,}" for i, sae in enumerate(saes))
    return LatentMap(names, latents, directions, near, _principal(directions), about, kept)


@torch.no_grad()
def heard(
    saes: list[SAE], lm: LM, site: Site, text: Any = None, tokens: int = 50_000, seed: int = 0, **options: Any
) -> pd.DataFrame:
    """Density of every latent of some SAEs of a site and, on the world, the concept that names it best and its F1.

    Both are counted on the validation split.
    """
    text, options = own_text(saes[0], text, options)
    labelled = text == "world"
    names = tuple(c.name for c in world.concepts()) if labelled else ()
    naming, times, seen, above = Naming(), 0, 0, lineages(names)
    for page in walk(lm, held_out(lm, text, "validation", seed, **options), [site], tokens, saes[0]):
        firing = {i: fired(sae.encode(page.acts[site].to(sae.W_dec.device))) for i, sae in enumerate(saes)}
        times, seen = times + np.concatenate([z.sum(0) for z in firing.values()]), seen + len(page.doc)
        if labelled:
            naming.add(firing, token_concepts(page.block, page.keep, world.Concepts(names)) @ above)
    table = pd.DataFrame({"density": times / seen})
    if labelled:
        table = table.join(pd.concat([naming.best(i, names) for i in range(len(saes))], ignore_index=True))
    return table


def _principal(directions: Float[Tensor, "rows d_in"]) -> Float[np.ndarray, "rows 2"]:
    centred = directions - directions.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return (centred @ vectors[:, -2:].flip(1)).numpy()


def _in_picture(xy: Float[np.ndarray, "rows 2"], k: int) -> Int[np.ndarray, "rows k"]:
    """Each point's k nearest others."""
    found = KDTree(xy).query(xy, k + 1)[1]
    others = found != np.arange(len(xy))[:, None]
    others[others.all(1), -1] = False  # of several in one place, the point itself may not be among the first
    return found[others].reshape(len(xy), k)


def main(folder: str) -> None:
    """The process that makes one layout."""
    tensors, settings = given(folder)
    rows = torch.arange(len(tensors["index"]))[:, None]
    index = torch.cat([rows, tensors["index"]], 1).numpy()  # UMAP counts a point among its neighbours
    distance = torch.cat([torch.zeros(len(rows), 1), 1 - tensors["cosine"]], 1).clamp(min=0).numpy()
    asked = {"n_neighbors": index.shape[1], "min_dist": settings["min_dist"], "random_state": settings["seed"]}
    warnings.simplefilter("ignore")  # of a seed that allows one thread, and of no search index: both are meant
    from umap import UMAP

    made = UMAP(metric="cosine", precomputed_knn=(index, distance), **asked)
    keep(folder, layout=torch.from_numpy(made.fit_transform(tensors["directions"].numpy())))


if __name__ == "__main__":
    main(sys.argv[1])
