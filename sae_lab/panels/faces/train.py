"""The training panel: launch, watch, pause, resume, stop; the training is a process of its own and outlives it."""

import time
from pathlib import Path
from typing import Any

import ipywidgets as W

from ...launcher import Job
from ...saes import variant as known
from .. import look
from ..forms import TrainingForm
from ..selection import Selection
from ..training import ACTIONS, EVERY, Training, View
from .curves import Curves
from .form import FormPanel
from .panel import Panel
from .sweep import SweepForm, SweptView

NAMES = {"launch": "Launch", "pause": "Pause", "resume": "Resume", "stop": "Stop", "save": "Save now"}
ICONS = {"launch": "rocket", "pause": "pause", "resume": "play", "stop": "stop", "save": "save"}
HELP = {
    "launch": "begin this training in a process of its own",
    "pause": "checkpoint, and wait",
    "resume": "go on where it stands",
    "stop": "checkpoint, and end the process",
    "save": "checkpoint, and go on",
}
NUMBERS = {"fvu": "FVU", "l0": "L0", "dead": "dead", "ce_recovered": "CE recovered", "lr": "learning rate"}


class TrainPanel(Panel):
    """A form, and what became of it. `training` is what is behind it, no widgets.

    Give it the folder of a run to watch that one: `TrainPanel(run="runs/first")`.
    """

    def __init__(
        self,
        variant: str = Job.variant,
        *,
        run: str | Path | None = None,
        folder: str | Path = "runs",
        selection: Selection | None = None,
        **knobs: Any,
    ):
        known(variant)
        self.training = Training(TrainingForm(variant, **knobs), folder)
        self.selection = selection if selection is not None else Selection()
        self._form = FormPanel(self.training.form)
        self.over = SweepForm(self.training, self.stay(self.show))
        self._form.on_change(self.stay(self._changed))
        self._settings = W.Accordion(
            [self._form, self.over], titles=("What to train", "Sweep over"), selected_index=None if run else 0
        )
        self._attach = W.Dropdown(description="show run", options=[("", "")], style={"description_width": "5rem"})
        self._attach.observe(self.stay(lambda change: self._switched(change["new"])), "value")
        self._buttons = {
            name: W.Button(description=NAMES[name], icon=ICONS[name], tooltip=HELP[name]) for name in ACTIONS
        }
        for name, button in self._buttons.items():
            button.on_click(self.stay(lambda _, name=name: self.ask(name)))
        self._price = W.Button(description="Estimate cost", icon="clock-o", tooltip="measure two seconds of it")
        self._price.on_click(self.stay(lambda _: self._priced(begin=True)))
        self._pricing = False
        self._cost, self._state, self._bar = W.HTML(), W.HTML(), W.FloatProgress(min=0.0, max=1.0)
        self._bar.layout.width = "100%"
        self._listed = self._drawn = 0.0
        self._curves, self._words, self._swept = Curves(), W.HTML(), SweptView(self.selection)
        row = W.HBox([*self._buttons.values(), self._price, self._attach])
        row.add_class("sae-buttons")
        super().__init__(
            self._settings, row, self._cost, self._state, self._bar, self._curves, self._swept, self._words
        )
        if run:
            self.attach(run)
        self.show()
        self.watch()

    def ask(self, action: str) -> None:
        """As if its button was clicked."""
        self.training.ask(action)
        if action == "launch":
            self._settings.selected_index = None
            self._chosen()
        self.show()

    def wait(self, timeout: float | None = None) -> "TrainPanel":
        """This panel, once its run has ended.

        Raises:
            TimeoutError, RuntimeError: as `Launched.wait`; if it shows none.
        """
        if self.training.run is None:
            raise RuntimeError("No run is shown: launch one, or attach to one.")
        self.training.run.wait(timeout)
        self.show()
        return self

    def attach(self, run: str | Path) -> None:
        """Shows another run, with its history."""
        self.training.attach(run)
        self._chosen()

    def _changed(self) -> None:
        self.over.show()
        self.show()

    def _switched(self, run: str) -> None:
        if run and run != self._name:
            self.attach(run)

    def refresh(self) -> None:
        self.show()
        self._priced()
        if time.monotonic() - self._listed > EVERY:
            self._list()

    def show(self) -> None:
        """Draws how the training stands."""
        view = self.training.view()
        for name, button in self._buttons.items():
            button.disabled = name not in view.can
        self._buttons["launch"].description = "Launch sweep" if self.training.varying.active else NAMES["launch"]
        self._state.value = _headline(self._name, view)
        self._bar.value, self._bar.bar_style = view.share, _style(view.state)
        self._curves.show(view.curves)
        if self.training.swept is not self._swept.swept or time.monotonic() - self._drawn > EVERY:
            self._drawn = time.monotonic()
            self._swept.show(self.training.swept)
        self._words.value = _numbers(view) + _words(view)

    def snapshot(self) -> str:
        view = self.training.view()
        return (
            _headline(self._name, view, now=False)
            + ("" if self.training.run is not None else self._form.snapshot() + self.over.snapshot())
            + _numbers(view)
            + _sparklines(view)
            + self._swept.snapshot()
            + _words(view)
        )

    @property
    def _name(self) -> str:
        return self.training.name

    def _chosen(self) -> None:
        """Tells the other panels which run it is, and names it among those there are now."""
        self.selection.run = self._name
        self._list()
        self.show()

    def _list(self) -> None:
        """Offers the runs there are now."""
        self._listed = time.monotonic()
        runs = ["", *self.training.runs]
        if sorted(run for _, run in self._attach.options) != sorted(runs):  # those at work change places all the time
            self._attach.options = [(look.seen(run), run) for run in runs]
        self._attach.value = self._name if self._name in runs else ""

    def _priced(self, begin: bool = False) -> None:
        """Shows what the training would cost, or begins to measure it."""
        if begin:
            self.training.estimate()
            self._cost.value, self._pricing = look.told("measuring the first steps ..."), True
            return
        try:
            cost = self.training.cost if self._pricing else None
        except RuntimeError as error:
            self._cost.value, self._pricing = look.told(str(error), wrong=True), False
            return
        if cost is not None:
            short, self._pricing = cost.shortage, False
            alone = "One SAE of the sweep by itself: " if self.training.varying.active else ""
            self._cost.value = look.told(
                f"{alone}{cost}" + (f". This machine is short of {short}" if short else ""), bool(short)
            )

    def __repr__(self) -> str:
        return f"<training panel: {self._name or self.training.form.variant}, {self.training.view().said}>"


def _headline(run: str, view: View, now: bool = True) -> str:
    clock = (
        f"updated {time.strftime('%H:%M:%S')}" if now and view.state in ("running", "starting", "evaluating") else ""
    )
    return look.headline(view.state or "none", " · ".join(part for part in (run, view.said, clock) if part))


def _style(state: str) -> str:
    return {"done": "success", "failed": "danger", "lost": "danger", "stuck": "warning", "paused": "warning"}.get(
        state, "info"
    )


def _numbers(view: View) -> str:
    shown = [(label, f"{view.numbers[name]:.4g}") for name, label in NUMBERS.items() if name in view.numbers]
    return look.figures([("last batch:", ""), *shown]) if shown else ""


def _sparklines(view: View) -> str:
    drawn = []
    for name in (c for c in view.curves if c in NUMBERS or c.startswith("terms.")):
        known = view.curves[["tokens", name]].dropna()
        named = NUMBERS.get(name) or name.removeprefix("terms.") + " (loss)"
        drawn.append(look.sparkline(named, known["tokens"].tolist(), known[name].tolist()))
    return look.columns(*drawn)


def _words(view: View) -> str:
    return "".join([_found(view.findings), look.listed(view.notes), look.code(view.error)])


def _found(findings: tuple) -> str:
    return "".join(
        look.told(f"{f.severity}: {f.name}. {f.evidence} Remedy: {f.remedy}", wrong=f.severity == "critical")
        for f in findings
    )
