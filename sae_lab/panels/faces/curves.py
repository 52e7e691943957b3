"""Curves of a training as they grow: one small panel per number, redrawn in place."""

import ipywidgets as W
import pandas as pd

from ... import plots
from .figures import LiveFigure

FIRST = ("fvu", "l0", "dead", "ce_recovered")


class Curves(W.VBox):
    """Empty until there is something to draw."""

    def __init__(self):
        self._shown: tuple[str, ...] = ()
        self._marks: dict[str, tuple] = {}
        super().__init__([])

    def show(self, rows: pd.DataFrame) -> None:
        """Draws what was measured over tokens; nothing is sent where nothing is new."""
        columns = tuple(c for c in (*FIRST, *sorted(c for c in rows if c.startswith("terms."))) if c in rows)
        if columns != self._shown:
            self._shown, self._marks = columns, {}
            self.children = [LiveFigure(plots.curves(rows, columns))] if columns else []
        for trace, column in zip(self.children[0].data if columns else (), columns):
            known = rows[["tokens", column]].dropna()
            mark = (len(known), *known["tokens"].tail(1))
            if mark != self._marks.get(column):
                self._marks[column] = mark
                with self.children[0].batch_update():
                    trace.x, trace.y = known["tokens"].to_numpy(), known[column].to_numpy()
