"""The panel of directions: a map to pan, click and lasso, and what split into what, as flows, tree and table."""

from pathlib import Path

import ipywidgets as W
import numpy as np

from ...models import LM
from ...runs import Run
from .. import look
from ..geometry import TOKENS, Geometry
from ..selection import Selection
from .cloud import PointCloud
from .figures import LiveFigure
from .grid import Grid
from .panel import Panel

SHOWN = 20  # marked latents that are named
LARGE = 200  # pixels of a point, over the root of how many there are; 2 to 6


class GeometryPanel(Panel):
    """Where the latents of some runs lie. `geometry` is what is behind it, no widgets."""

    def __init__(
        self,
        *runs: Run | str | Path,
        lm: LM | None = None,
        selection: Selection | None = None,
        height: int = 480,
        tokens: int = TOKENS,
    ):
        self.geometry = Geometry(runs, lm, tokens)
        self.selection = selection if selection is not None else Selection()
        self.geometry.draw()
        self._seen: tuple = ()
        places = self.geometry.places
        size = float(np.clip(LARGE / len(places) ** 0.5, 2.0, 6.0))  # pixels: few points may be large
        painted = self.geometry.colour("dictionary")
        self._cloud = PointCloud(places, **painted, label=self.geometry.label, height=height, sizes=size)
        self._cloud.observe(self.stay(self._clicked), "clicked")
        self._cloud.observe(self.stay(self._lassoed), "selected")
        self._colour = W.Dropdown(
            description="colour by", options=["dictionary"], style={"description_width": "4.5rem"}
        )
        self._colour.observe(self.stay(lambda _: self._paint()), "value")
        self._go = W.Text(placeholder="latent number", description="find", continuous_update=False)
        self._go.observe(self.stay(lambda change: self.find(change["new"])), "value")
        self._state, self._marked = W.HTML(), W.HTML()
        self._count = W.Button(
            description="Find splits", icon="code-fork", tooltip="what became of each latent in the wider runs"
        )
        self._count.on_click(self.stay(lambda _: self.geometry.begin_splitting()))
        self._families = Grid("No latent split.")
        self._families.observe(
            self.stay(lambda change: self._look(int(change["new"])) if change["new"] else None), "on_top"
        )
        none = "Between runs of two widths or more: what became of each latent in the wider one."
        self._flows, self._tree = W.VBox([W.HTML(look.told(none))]), W.VBox([W.HTML(look.told(none))])
        splits = W.Tab([self._flows, self._tree, self._families])
        splits.titles = ("Flows", "Tree", "Table")
        top = W.HBox([self._colour, self._go, self._state])
        top.add_class("sae-buttons")
        super().__init__(top, self._cloud, self._marked, self._count, splits)
        self.selection.observe(self.stay(lambda _: self._follow()), ["run", "latent"])
        self.refresh()
        self.watch()

    def find(self, latent: str | int) -> None:
        """Shows a latent of the selected run, or of the first.

        Raises:
            ValueError: if it has none of this number.
        """
        if str(latent).strip() == "":
            return
        names = [str(run.folder) for run in self.geometry.runs]
        run = self.selection.run if self.selection.run in names else names[0]
        point = self.geometry.point(run, int(latent)) if str(latent).strip().isdigit() else -1
        if point < 0:
            raise ValueError(f"No latent {latent!r} in {run}.")
        self._look(point)

    def wait(self, timeout: float | None = None) -> "GeometryPanel":
        """This panel, once concepts and UMAP are there."""
        self.geometry.wait(timeout)
        self.geometry.map.wait(timeout)
        self.refresh()
        return self

    def refresh(self) -> None:
        """Draws what has come since the last look: UMAP, densities, concepts, splits."""
        g = self.geometry
        seen = (id(g.map), g.map.ready, id(g.splitting), g.working, g.error)
        if seen == self._seen:
            return
        before, self._seen = self._seen, seen
        self._colour.options = g.colours
        if not before or before[:2] != seen[:2]:
            self._cloud.move(g.places)
            self._paint()
        if g.splitting is not None and before[2:3] != seen[2:3]:
            flows = LiveFigure(g.splitting.figure)
            flows.observe(self.stay(lambda change: self._on_flows(change["new"])), "clicked")
            self._flows.children = [flows]
            tree = LiveFigure(g.splitting.treemap)
            tree.observe(self.stay(lambda change: self._on_tree(change["new"])), "clicked")
            self._tree.children = [tree]
            self._families.show(g.families)
        self._count.disabled = bool(g.working) or len({sae.cfg.d_sae for sae in g.saes}) < 2
        self._state.value = look.told(g.error or self._said(), bool(g.error))

    def snapshot(self) -> str:
        g = self.geometry
        rows = g.map.table.round(3)
        return look.told(self._said()) + look.table([tuple(rows.columns), *rows.itertuples(index=False, name=None)])

    def _said(self) -> str:
        g = self.geometry
        drawn = "UMAP" if g.map.ready else "PCA; UMAP is being made"
        *_, best = g.map.trustworthiness.values()
        return f"{len(g.map.latents):,} latents by {drawn}, trustworthiness {best:.2f} (chance 0.5)" + (
            f" · {g.working}" if g.working else ""
        )

    def _paint(self) -> None:
        if self._colour.value:
            self._cloud.recolour(**self.geometry.colour(self._colour.value))

    def _clicked(self, change: dict) -> None:
        if change["new"] >= 0:
            self._look(change["new"])

    def _on_tree(self, clicked: list[int]) -> None:
        point = self.geometry.node(clicked[1])
        if point >= 0:
            self._look(point)

    def _on_flows(self, clicked: list) -> None:
        """Marks the latents behind a box or a band, and shows the most frequent of them."""
        trace, place, *part = clicked
        points = self.geometry.flow(place, part == ["band"]) if trace == 0 else []
        if points:
            self._look(points[0])
            self._cloud.choose(points)

    def _look(self, point: int) -> None:
        self.selection.run, self.selection.latent = self.geometry.latent(point)

    def _follow(self) -> None:
        """Marks the latent that another panel looks at."""
        point = self.geometry.point(self.selection.run, self.selection.latent)
        if point >= 0 and point != self._cloud.clicked:
            self._cloud.clicked = point

    def _lassoed(self, change: dict) -> None:
        """The marked latents of the selected run, or of the one that has most of them."""
        found = [self.geometry.latent(int(point)) for point in self._cloud.chosen]
        runs = [run for run, _ in found]
        if runs and self.selection.run not in runs:
            self.selection.run = max(set(runs), key=runs.count)
        self.selection.latents = tuple(latent for run, latent in found if run == self.selection.run)
        named = [self.geometry.label(int(point)).replace("\n", ", ") for point in self._cloud.chosen[:SHOWN]]
        more = [f"and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
        self._marked.value = look.told(f"{len(found):,} latents marked") + look.listed([*named, *more]) if found else ""

    def __repr__(self) -> str:
        return f"<geometry panel: {', '.join(run.name for run in self.geometry.runs)}, {self._said()}>"
