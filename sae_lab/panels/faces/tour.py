"""The five panels in order, linked by one selection: train, choose a run, read latents, see where they lie, steer."""

from pathlib import Path

import ipywidgets as W

from ...models import LM
from ...runs import Run
from .. import look
from ..selection import Selection
from .geometry import GeometryPanel
from .latents import LatentsPanel
from .panel import Panel
from .runs import RunsPanel
from .steer import SteerPanel
from .train import TrainPanel

TITLES = ("Train", "Runs", "Latents", "Geometry", "Steer")


class Tour(Panel):
    """All panels as tabs. The map is made when its tab is opened, of the run that is selected then."""

    def __init__(self, folder: str | Path = "runs", lm: LM | None = None, **knobs):
        self.selection, self._lm = Selection(), lm
        self.train = TrainPanel(folder=folder, selection=self.selection, **knobs)
        self.runs = RunsPanel(folder, selection=self.selection)
        self.latents = LatentsPanel(lm=lm, selection=self.selection)
        self.steer = SteerPanel(lm=lm, selection=self.selection)
        self.geometry: GeometryPanel | None = None
        self._map = W.VBox([W.HTML(look.told("Choose a run that is trained: its latents are mapped here."))])
        self._tabs = W.Tab([self.train, self.runs, self.latents, self._map, self.steer], titles=TITLES)
        self._tabs.observe(self.stay(lambda _: self._mapped()), "selected_index")
        self.selection.observe(self.stay(lambda _: self._mapped()), "run")
        super().__init__(self._tabs)

    def snapshot(self) -> str:
        shown = [
            self.train,
            self.runs,
            self.latents,
            *([self.geometry] if self.geometry is not None else []),
            self.steer,
        ]
        return "".join(look.heading(type(panel).__name__, 3) + panel.snapshot() for panel in shown)

    def _mapped(self) -> None:
        """Makes the map of the selected run, if it is looked at and not there yet."""
        run = self.selection.run
        known = self.geometry is not None and run in [str(r.folder) for r in self.geometry.geometry.runs]
        if self._tabs.selected_index == TITLES.index("Geometry") and run and not known and Run(run).trained:
            self.geometry = GeometryPanel(run, lm=self._lm, selection=self.selection)
            self._map.children = [self.geometry]

    def __repr__(self) -> str:
        return f"<tour: {self.selection!r}>"


def tour(folder: str | Path = "runs", lm: LM | None = None, **knobs) -> Tour:
    """The five panels on the runs of a folder; `knobs` are what the training panel's form begins with."""
    return Tour(folder, lm, **knobs)
