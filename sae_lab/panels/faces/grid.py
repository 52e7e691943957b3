"""A table to sort, to walk with the arrow keys and to choose rows of. Python gives rows, JavaScript draws them."""

from pathlib import Path
from typing import Any

import anywidget
import pandas as pd
import traitlets as T

from .. import look

MOST = 200  # rows that are drawn; what is beyond is counted
LONGEST = 400  # characters of a cell


class Grid(anywidget.AnyWidget):
    """Rows of a frame. `chosen` are the labels of the frame's index; a click chooses one, with Ctrl or Shift several.

    Attributes:
        on_top: label of the row that was clicked last; "" for none.
    """

    _esm = Path(__file__).with_suffix(".js")
    columns = T.List().tag(sync=True)  # [name, whether it is a number]
    rows = T.List().tag(sync=True)  # [label, cells ...], a number as [number, as it is written]
    more = T.Int(0).tag(sync=True)
    empty = T.Unicode("").tag(sync=True)
    chosen = T.List().tag(sync=True)
    on_top = T.Unicode("").tag(sync=True)

    def __init__(self, empty: str = "nothing here yet", **given: Any):
        super().__init__(empty=empty, **given)

    def show(self, frame: pd.DataFrame) -> None:
        """Draws a frame; what was chosen and is still there stays chosen."""
        part = frame.head(MOST)
        numeric = {name: pd.api.types.is_numeric_dtype(part[name]) for name in part}
        self.columns = [[look.seen(name), numeric[name]] for name in part]
        self.rows = [
            [str(label), *(_cell(value, numeric[name]) for name, value in zip(part, row))]
            for label, row in zip(part.index, part.itertuples(index=False, name=None))
        ]
        self.more = len(frame) - len(part)
        there = {str(label) for label in frame.index}
        self.chosen = [label for label in self.chosen if label in there]


def _cell(value: Any, numeric: bool) -> Any:
    if pd.isna(value):
        return [None, ""] if numeric else ""
    if not numeric:
        return look.seen(str(value)[:LONGEST])
    whole = float(value).is_integer() and abs(value) < 1e15
    return [float(value), f"{int(value):,}" if whole else f"{value:.4g}"]
