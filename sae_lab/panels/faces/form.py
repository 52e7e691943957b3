"""A form's widgets: a row per knob, drawn by its kind, and underneath the code that says the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as W

from ... import saes
from ...knobs import Knob
from ...launcher import Job
from .. import look
from ..forms import Scale, TrainingForm, typed
from .panel import Panel

LABEL = {"description_width": "9.5rem"}


class Field:
    """One row: the control, a slider where there is a scale, and the help, or what is wrong."""

    def __init__(self, row: Knob, changed: Callable[[str, Any], None]):
        self.row, self.scale = row, Scale.of(row)
        self.control, self.said = control(row), W.HTML()
        self.control.add_class("sae-control")
        self.said.add_class("sae-said")
        self.control.observe(lambda change: changed(row.name, change["new"]), "value")
        parts = [self.control]
        if self.scale:
            self.slider = W.IntSlider(min=0, max=self.scale.notches, readout=False, tooltip=row.name)
            self.slider.observe(lambda change: changed(row.name, self.scale.value(change["new"])), "value")
            parts.append(self.slider)
        self.box = W.HBox([*parts, self.said])
        self.box.add_class("sae-row")

    def serves(self, row: Knob) -> bool:
        """Whether its widgets do for this row too."""
        return replace(self.row, help=row.help, default=row.default) == row and Scale.of(row) == self.scale

    def show(self, row: Knob, value: Any, wrong: str) -> None:
        """Puts a value on the controls; a slider that means it already is left where the hand has it."""
        if isinstance(self.control, W.Text):
            self.control.value = typed(value)
        elif isinstance(self.control, W.Dropdown):
            self.control.value = value if value in [kept for _, kept in self.control.options] else None
        else:
            self.control.value = value is True
        numeric = self.scale and isinstance(value, int | float)
        if numeric and self.scale.value(self.slider.value) != value:
            self.slider.value = self.scale.notch(value)
        self.row, self.control.tooltip = row, row.help
        self.said.value = look.told(wrong or row.help + (f" [{row.reach}]" if row.reach else ""), bool(wrong))

    def close(self) -> None:
        for widget in (*self.box.children, self.box):
            widget.close()


def control(row: Knob) -> W.Widget:
    """The widget for a knob's kind."""
    named = {"description": row.name, "style": LABEL}
    if row.choices:
        unset = [("None", None)] if row.optional else []
        return W.Dropdown(options=[*unset, *((str(choice), choice) for choice in row.choices)], **named)
    if row.kind is bool and not row.optional:
        return W.Checkbox(**named)
    return W.Text(placeholder="None" if row.optional else "", continuous_update=False, **named)


class FormPanel(Panel):
    """The form of a training. `knobs` is for sl.launch, `own` for sl.build; `form` is what is behind it, no widgets."""

    def __init__(self, form: TrainingForm):
        self.form, self._fields, self._showing, self._told = form, {}, False, []
        self._usual, self._rest, self._foot = W.VBox(), W.VBox(), W.HTML()
        self._more = W.Accordion([self._rest])
        self._more.observe(lambda _: self.show(), "selected_index")  # its rows are made when they are looked at
        super().__init__(self._usual, self._more, self._foot)
        self.show()

    @property
    def knobs(self) -> dict[str, Any]:
        return self.form.knobs

    @property
    def own(self) -> dict[str, Any]:
        return self.form.own

    def set(self, name: str, given: Any) -> None:
        """As if it was typed."""
        self.form.set(name, given)
        self.show()
        for tell in self._told:
            tell()

    def on_change(self, tell: Callable[[], None]) -> None:
        """Calls `tell` whenever something was typed."""
        self._told.append(tell)

    def show(self) -> None:
        """Draws what the form says now: other rows where it has others, values, errors, code."""
        self._showing = True
        try:
            self._draw()
            rows, values, errors = self.form.rows, self.form.values, self.form.errors
            for name, field in self._fields.items():
                field.show(rows[name], values[name], errors.get(name, ""))
            more = self.form.more
            wrong = sum(row.name in errors for row in more)
            self._more.titles = (f"More knobs ({len(more)}" + (f", {wrong} to mend)" if wrong else ")"),)
            self._foot.value = self._code(errors)
        finally:
            self._showing = False

    def snapshot(self) -> str:
        """The form as a table, for where no widget runs: escaped, needing nothing else."""
        values, errors = self.form.values, self.form.errors
        rows = [(row.name, typed(values[row.name]), errors.get(row.name) or row.help) for row in self.form.usual]
        return look.table(rows) + self._code(errors)

    def _draw(self) -> None:
        old, usual = self._fields, self.form.usual
        more = self.form.more if self._more.selected_index is not None or self._rest.children else []
        rows = {row.name: row for row in (*usual, *more)}
        kept = {name: old[name] for name, row in rows.items() if name in old and old[name].serves(row)}
        if list(old) == list(kept) == list(rows):
            return
        self._fields = {name: kept.get(name) or Field(row, self._changed) for name, row in rows.items()}
        self._usual.children = [self._fields[row.name].box for row in usual]
        self._rest.children = [self._fields[row.name].box for row in more]
        for name in old.keys() - kept.keys():
            old[name].close()

    def _changed(self, name: str, given: Any) -> None:
        if self._showing:
            return
        self.stay(self.set)(name, given)

    def _code(self, errors: dict[str, str]) -> str:
        if errors:
            return look.told(errors.get("") or f"To mend: {', '.join(errors)}.", wrong=True)
        return look.code(self.form.command) + look.code(self.form.call)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        self.show()
        return super()._repr_mimebundle_(**kwargs)

    def __repr__(self) -> str:
        errors = self.form.errors
        asked = (f"{name}={value!r}" for name, value in self.form.asked.items())
        return f"<form: to mend: {', '.join(errors)}>" if errors else f"<form: {', '.join(asked)}>"


def form(variant: str = Job.variant, **knobs: Any) -> FormPanel:
    """The form of a training, to fill in: form("topk", d_sae=512, k=16). All variants there are can be chosen in it.

    Raises:
        KeyError: if no variant has this name.
        TypeError: for a knob that the variant has not.
    """
    saes.variant(variant)
    return FormPanel(TrainingForm(variant, **knobs))
