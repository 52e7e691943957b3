"""The panel of runs: a table to filter, sort and choose from; curves, front and settings of what was chosen."""

from base64 import b64encode
from pathlib import Path

import ipywidgets as W
import pandas as pd

from ... import plots
from .. import look
from ..runs import Runs
from ..selection import Selection
from .figures import LiveFigure
from .grid import Grid
from .panel import Panel

SEEN = 8  # ticks between looks at the folder: two seconds


class RunsPanel(Panel):
    """The runs of a folder, as they come and go. `runs` is what is behind it, no widgets."""

    def __init__(self, folder: str | Path = "runs", *, selection: Selection | None = None):
        self.runs = Runs(folder)
        self.selection = selection if selection is not None else Selection()
        self._filter = W.Text(
            placeholder="filter: batchtopk L2R done ...", continuous_update=True, description="runs with"
        )
        self._filter.observe(self.stay(lambda change: self.filter(change["new"])), "value")
        self._number = W.Dropdown(description="curve of", options=[("fvu", "fvu")])
        self._number.observe(self.stay(lambda _: self._draw()), "value")
        self._save, self._count = W.HTML(), W.HTML()
        self._grid = Grid(empty=f"No runs in {folder}. Train one: sl.panels.TrainPanel(), or sae-lab train.")
        self._grid.observe(self.stay(lambda _: self._draw()), "chosen")
        self._grid.observe(self.stay(self._looked_at), "on_top")
        self._curves, self._front, self._differ = W.VBox(), W.VBox(), W.HTML()
        parts = W.Tab([W.VBox([self._number, self._curves]), self._front, self._differ])
        parts.titles = ("Curves", "L0 and FVU", "Settings that differ")
        self._ticks, self._frame = 0, pd.DataFrame()
        top = W.HBox([self._filter, self._count, self._save])
        top.add_class("sae-buttons")
        super().__init__(top, self._grid, parts)
        self.show()
        self._draw()
        self.watch()

    @property
    def chosen(self) -> list[str]:
        """Folders of the runs that are chosen."""
        return list(self._grid.chosen)

    def choose(self, *runs: str | Path) -> None:
        """As if their rows were clicked."""
        self._grid.chosen = [str(run) for run in runs]

    def filter(self, words: str) -> None:
        """Shows those runs that have all of these words."""
        self.runs.words = words
        self.show()

    def refresh(self) -> None:
        self._ticks += 1
        if self._ticks % SEEN == 0:
            self.show()

    def show(self) -> None:
        """Reads the folder and draws the table; nothing is sent where nothing is new."""
        frame = self.runs.table()
        if frame.equals(self._frame) and self._count.value:
            return
        self._frame = frame
        self._grid.show(frame)
        self._count.value = look.told(f"{len(frame):,} run{'s' * (len(frame) != 1)}")
        self._save.value = look.download("CSV", "runs.csv", b64encode(self.runs.csv().encode()).decode())

    def snapshot(self) -> str:
        frame = self.runs.table()
        return look.frame(frame)

    def _looked_at(self, change: dict) -> None:
        self.selection.run = change["new"]

    def _draw(self) -> None:
        chosen = self.chosen
        numbers = self.runs.numbers(chosen) or ["fvu"]
        options = [(look.seen(name), name) for name in numbers]
        if list(self._number.options) != options:
            self._number.options = options
        self._curves.children = (
            [LiveFigure(self.runs.curves(chosen, self._number.value))] if chosen else [_hint("its curve")]
        )
        measured = self._frame.dropna(subset=["L0", "FVU"]) if len(self._frame) else self._frame
        self._front.children = (
            [LiveFigure(plots.front(measured, chosen))] if len(measured) else [_hint("where it lies")]
        )
        differ = self.runs.differences(chosen)
        rows = [("", *differ.columns), *(tuple(row) for row in differ.itertuples(name=None))]
        self._differ.value = look.table(rows) if len(differ) else look.told("Choose two runs or more: Ctrl and click.")

    def __repr__(self) -> str:
        return f"<runs panel: {len(self._frame):,} runs of {self.runs.folder}, {len(self.chosen)} chosen>"


def _hint(what: str) -> W.HTML:
    return W.HTML(look.told(f"Click a run to see {what}; Ctrl and Shift choose several."))
