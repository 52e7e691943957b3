"""A sweep's widgets: a row per knob that varies, with its values; and the SAEs as they come, as curves and a table."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as W

from ... import plots
from .. import look
from ..selection import Selection
from ..sweeping import Swept
from ..training import Training
from .figures import LiveFigure
from .form import LABEL
from .grid import Grid
from .panel import Panel

PICK = "vary a knob ..."


class SweepForm(Panel):
    """What the form above is swept over; empty for one training."""

    def __init__(self, training: Training, changed: Callable[[], None]):
        self.training, self.varying, self._tell = training, training.varying, changed
        self._rows: dict[str, tuple[W.HBox, W.Text, W.HTML]] = {}
        self._showing = False
        self._pick = W.Dropdown(description="vary", style=LABEL)
        self._pick.observe(self.stay(lambda change: self._begin(change["new"])), "value")
        self._seeds = W.BoundedIntText(1, min=1, max=1000, description="seeds of each", style=LABEL)
        self._seeds.observe(self.stay(lambda change: self.set("seeds", change["new"])), "value")
        self._box, self._foot = W.VBox(), W.HTML()
        for control in (self._pick, self._seeds):
            control.add_class("sae-control")
        lines = [W.HBox([control]) for control in (self._pick, self._seeds)]
        for line in lines:
            line.add_class("sae-row")
        super().__init__(self._box, *lines, self._foot)
        self.show()

    def set(self, name: str, given: str | int) -> None:
        """As if values were typed: set("lr", "1e-4, 1e-3"); an empty text takes the row away."""
        self.varying.set(name, str(given))
        self.show()
        self._tell()

    def show(self) -> None:
        """Draws the rows there are, what is wrong with them, and the code that says the same."""
        self._showing = True
        try:
            asked, errors, rows = self.varying.asked, self.varying.errors, self.varying.rows
            shown = [name for name in asked if name in rows]
            for name in self._rows.keys() - set(shown):
                for widget in (*self._rows[name][0].children, self._rows[name][0]):
                    widget.close()
                del self._rows[name]
            for name in shown:
                box, text, said = self._rows.get(name) or self._made(name)
                self._rows[name], text.value = (box, text, said), asked[name]
                row = rows[name]
                reach = ", ".join(map(str, row.choices)) or row.reach
                said.value = look.told(errors.get(name) or row.help + (f" [{reach}]" if reach else ""), name in errors)
            self._box.children = [self._rows[name][0] for name in shown]
            options = [PICK, *(name for name in rows if name not in asked)]
            if list(self._pick.options) != options:
                self._pick.options = options
            self._pick.value, self._seeds.value = PICK, self.varying.seeds
            self._foot.value = self._said(errors)
        finally:
            self._showing = False

    def snapshot(self) -> str:
        if not self.varying.active:
            return ""
        rows = [(name, self.varying.asked[name]) for name in self._rows]
        return look.table([*rows, ("seeds of each", self.varying.seeds)]) + self._said(self.varying.errors)

    def _begin(self, name: str) -> None:
        if not self._showing and name and name != PICK:
            self.varying.begin(name)
            self.show()
            self._tell()

    def _made(self, name: str) -> tuple[W.HBox, W.Text, W.HTML]:
        text, said = W.Text(description=name, style=LABEL, continuous_update=False), W.HTML()
        away = W.Button(icon="times", tooltip=f"do not vary {name}", layout={"width": "2.5rem"})
        text.placeholder = "values, with commas between"
        text.add_class("sae-control")
        said.add_class("sae-said")
        text.observe(self.stay(partial(self._typed, name)), "value")
        away.on_click(self.stay(lambda _: self.set(name, "")))
        box = W.HBox([text, away, said])
        box.add_class("sae-row")
        return box, text, said

    def _typed(self, name: str, change: dict[str, Any]) -> None:
        if not self._showing:
            self.set(name, change["new"])

    def _said(self, errors: dict[str, str]) -> str:
        if not self.varying.active:
            return look.told("Choose a knob, or several seeds, and Launch begins a sweep.")
        if errors:
            return look.told(errors.get("") or f"To mend: {', '.join(errors)}.", wrong=True)
        return look.told(self.varying.said) + look.code(self.varying.call(self.training.free))


class SweptView(W.VBox):
    """The SAEs of a sweep: curves, the front, a table; a click on a row chooses its run."""

    def __init__(self, selection: Selection):
        self.selection, self.swept = selection, None
        self._grid = Grid("Nothing is measured yet.")
        self._grid.observe(self._clicked, "on_top")
        self._curves, self._front, self._against = W.VBox(), W.VBox(), W.VBox()
        self._tabs = W.Tab([self._curves, self._front, self._against], titles=("Curves", "L0 and FVU", "By knob"))
        super().__init__([self._tabs, self._grid])
        self.show(None)

    def show(self, swept: Swept | None) -> None:
        """Draws what is new."""
        self.layout.display = "" if swept else "none"
        other, self.swept = swept is not self.swept, swept
        if swept is None or not (swept.read() or other):
            return
        sweep = swept.sweep
        _put(self._curves, plots.overlaid(swept.logs, "fvu") if swept.logs else None)
        measured = sweep.table["l0"].notna().any()
        _put(self._front, sweep.figure if measured else None)
        varies = [name for name in (*sweep.plan.over, "k", "d_sae") if sweep.table[name].nunique(dropna=False) > 1]
        _put(self._against, sweep.against(varies[0]) if measured and varies else None)
        self._grid.show(swept.table)

    def snapshot(self) -> str:
        return look.frame(self.swept.table) if self.swept else ""

    def _clicked(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.selection.run = change["new"]


def _put(box: W.VBox, figure: Any) -> None:
    """Draws a figure in a box, in the place of the one there."""
    if figure is None:
        box.children = [W.HTML(look.told("Nothing is measured yet."))]
    elif box.children and isinstance(box.children[0], LiveFigure):
        box.children[0].show(figure)
    else:
        box.children = [LiveFigure(figure)]
