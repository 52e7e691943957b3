"""What a panel of directions shows, without widgets: a map of the latents of several runs, and what split into what."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..geometry import NAMED, LatentMap, map_latents
from ..library import load_sae
from ..models import LM
from ..reading import model_of
from ..runs import Run
from ..splitting import Splitting, split
from .work import Work

TOKENS = 50_000  # on which densities, concepts and splits are measured
FEW = 15  # categories that have a colour of their own
COLOURS = ("dictionary", "density", "concept", "cluster", "split")


class Geometry(Work):
    """The directions of one or several runs of a site.

    What takes long is made in a thread, as soon as it is asked for.
    """

    def __init__(self, runs: Sequence[Run | str | Path], lm: LM | None = None, tokens: int = TOKENS):
        super().__init__()
        self.runs = [run if isinstance(run, Run) else Run(run) for run in runs]
        if not self.runs:
            raise ValueError("GeometryPanel() has no runs to show: give it one or several.")
        self._lm, self.tokens = lm, tokens
        self.map: LatentMap | None = None
        self.splitting: Splitting | None = None

    @cached_property
    def saes(self) -> list[Any]:
        return [load_sae(run) for run in self.runs]

    @cached_property
    def lm(self) -> LM:
        return self._lm or model_of(self.saes[0])

    def draw(self) -> None:
        """Makes the map: at once by PCA, then with densities and concepts; UMAP comes from a process of its own."""
        self.map = map_latents(self.saes)
        self.begin("reading densities and concepts", self._read)

    def begin_splitting(self) -> None:
        """Finds what became of the latents of each width in the next.

        Raises:
            ValueError: with fewer than two widths.
        """
        if len({sae.cfg.d_sae for sae in self.saes}) < 2:
            raise ValueError("Splitting is between widths: show runs of two different d_sae, or more.")
        self.begin("counting splits", self._split)

    @property
    def colours(self) -> list[str]:
        """What points can be coloured by now."""
        known = {"dictionary"} | set(self.map.latents.columns) | ({"cluster"} if self.map.ready else set())
        return [c for c in COLOURS if c in known | ({"split"} if self.splitting is not None else set())]

    def colour(self, by: str) -> dict[str, Any]:
        """A value per point, as `PointCloud.recolour` takes them; rare categories are put together.

        Raises:
            ValueError: for what there is no colour by.
        """
        if by not in self.colours:
            raise ValueError(f"No colour {by!r} now. There are: {', '.join(self.colours)}.")
        if by == "density":
            rate = np.log10(self.map.latents["density"].replace(0, np.nan).to_numpy(np.float64))
            return {"values": rate, "title": "density", "unit": "log10 share of tokens"}
        if by == "cluster":
            said = pd.Series([f"cluster {c}" if c >= 0 else "" for c in self.map.clusters])
        elif by == "concept":
            known = self.map.latents["f1"] >= NAMED
            said = self.map.latents["concept"].str.split(".").str[:2].str.join(".").where(known, "")
        elif by == "split":
            said = self._labels
        else:
            said = pd.Series([self.map.names[d] for d in self.map.latents["dictionary"]])
        names = said[said != ""].value_counts().index[:FEW].tolist()
        place = {name: i for i, name in enumerate(names)}
        rest = len(said[said != ""].unique()) > len(names)
        codes = [place.get(name, len(names) if rest and name else -1) for name in said]
        return {"values": np.array(codes, np.int64), "names": [*names, *(["other"] if rest else [])], "title": by}

    @property
    def places(self) -> np.ndarray:
        """Where the points lie, [rows, 2]: by UMAP once it is there, by PCA before."""
        return self.map.umap if self.map.ready else self.map.pca

    def point(self, run: str, latent: int) -> int:
        """The row of a latent; -1 if it is of none of these runs."""
        names = [str(r.folder) for r in self.runs]
        if run not in names or not 0 <= latent < self.saes[names.index(run)].cfg.d_sae:
            return -1
        return sum(sae.cfg.d_sae for sae in self.saes[: names.index(run)]) + latent

    def latent(self, point: int) -> tuple[str, int]:
        """(run, latent) of a row."""
        row = self.map.latents.iloc[point]
        return str(self.runs[int(row["dictionary"])].folder), int(row["latent"])

    def label(self, point: int) -> str:
        """What is said of a point."""
        row = self.map.latents.iloc[point]
        said = f"{self.map.names[int(row['dictionary'])]}, latent {int(row['latent'])}"
        said += f"\nfires on {row['density']:.3%} of tokens" if "density" in row else ""
        return said + (f"\n{row['concept']} (F1 {row['f1']:.2f})" if row.get("f1", 0) >= NAMED else "")

    @property
    def families(self) -> pd.DataFrame:
        """One row per latent that split, the most frequent first; labelled by its point."""
        found = self.splitting.families.query("verdict == 'split'").sort_values("firings", ascending=False)
        names = [str(run.folder) for run in self._by_width]
        order = dict(zip(self._names, names))
        points = [self.point(order[row["from"]], row["parent"]) for row in found.to_dict("records")]
        shown = [
            c for c in ("from", "to", "parent", "concept", "children", "cover", "overlap", "firings") if c in found
        ]
        return found[shown].set_axis(points)

    def node(self, place: int) -> int:
        """The row of the latent that a box of the tree of splits stands for; -1 for a box of many."""
        known = self.splitting.treemap.data[0].ids[place]
        runs = dict(zip(self._names, (str(run.folder) for run in self._by_width)))
        for link in self.splitting.links:
            if known.startswith(top := f"{link.old} to {link.new}/"):
                parent, *child = known.removeprefix(top).split("/")
                return self.point(runs[link.new], int(child[0])) if child else self.point(runs[link.old], int(parent))
        return -1

    def flow(self, place: int, band: bool = False) -> list[int]:
        """The rows of the latents behind a box of the flows of splits, or behind a band between two boxes; the most
        frequent first, where that is known."""
        drawn, rows = self.splitting.figure.data[0], self.splitting.flows
        boxes = drawn.node.label
        if band:
            out, into = boxes[drawn.link.source[place]], boxes[drawn.link.target[place]]
            found = rows[(rows["out of"] == out) & (rows["into"] == into)]
            named = [("to", "child", found)]
        else:
            out = rows[rows["out of"] == boxes[place]]
            orphans, parents = out[out["parent"] < 0], out[out["parent"] >= 0]
            named = [("from", "parent", parents), ("to", "child", orphans)]
            named += [("to", "child", rows[rows["into"] == boxes[place]])]
        run = dict(zip(self._names, (str(run.folder) for run in self._by_width)))
        points = [self.point(run[of], int(i)) for width, who, some in named for of, i in zip(some[width], some[who])]
        points = list(dict.fromkeys(points))
        rate = self.map.latents.get("density")
        return points if rate is None else sorted(points, key=lambda point: -rate[point])

    @property
    def _by_width(self) -> list[Run]:
        """A run of each width, the narrow ones first."""
        first = {sae.cfg.d_sae: run for sae, run in reversed(list(zip(self.saes, self.runs)))}
        return [first[width] for width in sorted(first)]

    @property
    def _names(self) -> list[str]:
        """What the splitting calls each of these."""
        links = self.splitting.links
        return [*(link.old for link in links), links[-1].new]

    @property
    def _labels(self) -> pd.Series:
        """Of each point, what it became or came from; "" where nothing was asked of it."""
        said = pd.Series("", index=range(len(self.map.latents)))
        names = dict(zip(self._names, (str(run.folder) for run in self._by_width)))
        for row in self.splitting.families.to_dict("records"):
            parent = self.point(names[row["from"]], row["parent"])
            said[parent] = f"parent: {row['verdict']}"
            for child in row["children"]:
                said[self.point(names[row["to"]], child)] = f"child of a {row['verdict']}"
        return said

    def _read(self) -> None:
        self.map = map_latents(self.saes, self.lm, tokens=self.tokens)

    def _split(self) -> None:
        pairs = [
            [s for s in self.saes if s.cfg.d_sae == width] for width in sorted({s.cfg.d_sae for s in self.saes})[1:]
        ]
        null = [sae for same in pairs if len(same) > 1 for sae in same[:2]]
        self.splitting = split(
            [self.saes[self.runs.index(run)] for run in self._by_width], self.lm, null=null, tokens=self.tokens
        )
