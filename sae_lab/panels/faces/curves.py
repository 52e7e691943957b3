"""Curves of a training as they grow: one small panel per number, redrawn in place."""

import ipywidgets as W
import pandas as pd

from ... import plots
from .figures import LiveFigure

FIRST = ("fvu", "l0", "dead", "ce_recovered")


class Curves(W.VBox):
    """Empty until there is something to draw."""

    def __init__(self):
        self._drawn: pd.DataFrame | None = None
        super().__init__([])

    def show(self, rows: pd.DataFrame) -> None:
        """Draws what was measured over tokens; nothing is sent where the rows are those of the last time."""
        if rows is self._drawn:
            return
        self._drawn = rows
        columns = tuple(c for c in (*FIRST, *sorted(c for c in rows if c.startswith("terms."))) if c in rows)
        if not columns:
            self.children = ()
        elif self.children:
            self.children[0].show(plots.curves(rows, columns))
        else:
            self.children = [LiveFigure(plots.curves(rows, columns))]
