"""The panel of steering: latents and how they are pushed, two texts as they are written, logits, dose and response."""

from pathlib import Path

import ipywidgets as W

from ...models import LM
from ...runs import Run
from ...steering import MODES
from ...steering.pushes import POSITIONS
from ...tiny import world
from .. import look
from ..selection import Selection
from ..steering import NAMES, Steering
from .figures import LiveFigure
from .panel import Panel

WIDE = {"description_width": "6rem"}
TOP = 8  # logits shown each way
STRONGEST = 6.0  # of the slider, in units of a latent's maximum


class SteerPanel(Panel):
    """Pushes latents of a run while its model writes. `steering` is what is behind it, no widgets."""

    def __init__(
        self,
        run: Run | str | Path | None = None,
        lm: LM | None = None,
        *,
        latents: dict[int, float] | None = None,
        selection: Selection | None = None,
    ):
        self.selection = selection if selection is not None else Selection()
        self.steering: Steering | None = None
        self._lm, self._seen = lm, ()
        self._make()
        self._wire()
        controls, dose = (
            W.HBox([self._tokens, self._heat, self._top, self._seed, self._go, self._cancel]),
            W.HBox([self._concept, self._measure]),
        )
        top = W.HBox([self._add, self._plus, self._state])
        for box in (top, controls, dose):
            box.add_class("sae-buttons")
        super().__init__(
            top,
            self._rows,
            self._prompt,
            controls,
            self._texts,
            self._logits,
            dose,
            self._doses,
            self._side,
            self._code,
        )
        where = run if run is not None else self.selection.run
        self.attach(where.folder if isinstance(where, Run) else where)
        for latent, strength in (latents or {}).items():
            self.add(latent, strength)
        self.watch()

    def _make(self) -> None:
        self._rows, self._state, self._code = W.VBox(), W.HTML(), W.HTML()
        self._add = W.Text(placeholder="latent number", description="push", continuous_update=False)
        self._plus = W.Button(description="Add", icon="plus", tooltip="push this latent, or the selected one")
        self._prompt = W.Textarea(description="prompt", rows=2, layout={"width": "100%"})
        self._tokens = W.BoundedIntText(40, min=1, max=4096, description="tokens", layout={"width": "11rem"})
        self._heat = W.BoundedFloatText(
            0.0, min=0.0, max=5.0, step=0.1, description="temperature", layout={"width": "11rem"}, style=WIDE
        )
        self._top = W.BoundedFloatText(
            1.0, min=0.01, max=1.0, step=0.05, description="top-p", layout={"width": "11rem"}
        )
        self._seed = W.BoundedIntText(0, min=0, max=2**31 - 1, description="seed", layout={"width": "11rem"})
        self._go = W.Button(description="Write", icon="play", tooltip="untouched and steered, side by side")
        self._cancel = W.Button(description="Cancel", icon="stop", tooltip="stop after the token in progress")
        self._concept = W.Combobox(
            description="concept", options=[c.name for c in world.concepts()], ensure_option=True
        )
        self._measure = W.Button(
            description="Dose and response",
            layout={"width": "12rem"},
            icon="line-chart",
            tooltip="the same pushes at several strengths, beside the baselines",
        )
        self._texts, self._logits, self._doses, self._side = W.HTML(), W.HTML(), W.VBox(), W.HTML()

    def _wire(self) -> None:
        self._plus.on_click(self.stay(lambda _: self.add(self._add.value or self.selection.latent)))
        self._add.observe(self.stay(lambda change: self.add(change["new"]) if change["new"].strip() else None), "value")
        self._go.on_click(self.stay(lambda _: self.write()))
        self._cancel.on_click(self.stay(lambda _: self.steering.cancel()))
        self._measure.on_click(self.stay(lambda _: self.measure()))
        self.selection.observe(self.stay(lambda change: self.attach(change["new"])), "run")

    def attach(self, run: str | Path) -> None:
        """Steers with the SAE of another run; pushes are of one SAE, and go with it."""
        if self.steering is not None and str(self.steering.run.folder) == str(run):
            return
        known = str(run) and Run(run).trained
        self.steering = Steering(run, self._lm) if known else None
        self._prompt.value = self.steering.prompt if known else ""
        self._draw_rows()
        self.refresh()

    def add(self, latent: int | str, strength: float = 1.0) -> None:
        """Pushes one more latent.

        Raises:
            ValueError: for one that is not there.
        """
        if self.steering is None:
            raise ValueError("No run is chosen: click one in the panel of runs, or give SteerPanel(run).")
        if not str(latent).strip().isdigit():
            raise ValueError(f"{latent!r} is no latent: type its number, or click one in another panel.")
        self.steering.add(int(latent), strength=float(strength))
        self._add.value = ""
        self._draw_rows()
        self.refresh()

    def write(self) -> None:
        """Writes with the pushes there are."""
        self.steering.prompt = self._prompt.value
        self.steering.write(**self._how)

    def wait(self, timeout: float | None = None) -> "SteerPanel":
        """This panel, once nothing is being written or measured."""
        if self.steering is not None:
            self.steering.wait(timeout)
        self.refresh()
        return self

    def measure(self) -> None:
        """Measures the pushes at several strengths."""
        if not self._concept.value:
            raise ValueError("Choose the concept that the texts are searched for.")
        self.steering.sweep(self._concept.value)

    def refresh(self) -> None:
        """Draws what has been written and measured since the last look."""
        s = self.steering
        seen = (
            (id(s), s.texts, s.working, s.error, id(s.response), tuple(s.pushes), self._prompt.value) if s else (None,)
        )
        if seen == self._seen:
            return
        before, self._seen = self._seen, seen
        for button in (self._go, self._measure, self._plus):
            button.disabled = s is None or bool(s.working)
        self._cancel.disabled = s is None or s.working != "writing"
        self._state.value = look.told(self._said(), bool(s and s.error))
        self._texts.value, self._logits.value = self._written(), self._moved()
        self._code.value = look.code(s.call(**self._how)) if s and s.pushes else ""
        if s and s.response is not None and before[4:5] != seen[4:5]:
            self._doses.children = [LiveFigure(s.response.figure)]
            title = "latents that moved most besides, in standard deviations of theirs"
            few = (
                look.told("None moved that can be told from chance.") if s.side.empty else look.frame(s.side.head(TOP))
            )
            self._side.value = look.heading(title) + few

    def snapshot(self) -> str:
        s = self.steering
        if s is None:
            return look.told(self._said())
        pushes = look.table([(f"latent {p.latent}", p.mode, f"{p.strength:g}", p.positions) for p in s.pushes])
        doses = look.frame(s.response.table) if s.response is not None else ""
        return pushes + self._written() + self._moved() + doses + look.code(s.call(**self._how))

    @property
    def _how(self) -> dict[str, float]:
        return {
            "tokens": self._tokens.value,
            "temperature": self._heat.value,
            "top_p": self._top.value,
            "seed": self._seed.value,
        }

    def _said(self) -> str:
        if self.steering is None:
            return "no run with a trained SAE is chosen"
        n = len(self.steering.pushes)
        resting = f"{self.steering.run.name}: {n} latent{'s' * (n != 1)} pushed"
        return self.steering.error or self.steering.working or resting

    def _written(self) -> str:
        s = self.steering
        if s is None or not any(s.texts):
            return ""
        return look.halves(*(look.heading(name) + look.text(s.prompt, text) for name, text in zip(NAMES, s.texts)))

    def _moved(self) -> str:
        if self.steering is None or self.steering.changes.empty:
            return ""
        parts = []
        for way, title in (("risen", "next token: logits that rose"), ("fallen", "that fell")):
            rows = self.steering.changes[self.steering.changes["way"] == way].head(TOP)
            shown = [
                (repr(r.token), f"{r.change:+.2f}", f"p {r.p_before:.1g} to {r.p_after:.1g}") for r in rows.itertuples()
            ]
            parts.append(look.heading(title) + look.table(shown))
        return look.columns(*parts)

    def _draw_rows(self) -> None:
        pushes = self.steering.pushes if self.steering is not None else []
        self._rows.children = [self._row(push) for push in pushes]

    def _row(self, push) -> W.HBox:
        latent = push.latent
        mode = W.Dropdown(options=MODES, value=push.mode, description=f"latent {latent}", tooltip="what is done to it")
        strength = W.FloatSlider(
            push.strength,
            min=-STRONGEST,
            max=STRONGEST,
            step=0.1,
            continuous_update=False,
            description="strength",
            tooltip="in units of the latent's largest activation",
        )
        where = W.Combobox(value=push.positions, options=POSITIONS, description="positions", ensure_option=False)
        away = W.Button(icon="times", tooltip=f"leave latent {latent} alone", layout={"width": "2.5rem"})
        for name, control in (("mode", mode), ("strength", strength), ("positions", where)):
            control.observe(
                self.stay(lambda change, name=name: self.steering.change(latent, **{name: change["new"]})), "value"
            )
        away.on_click(self.stay(lambda _: self._away(latent)))
        row = W.HBox([mode, strength, where, away])
        row.add_class("sae-buttons")
        return row

    def _away(self, latent: int) -> None:
        self.steering.remove(latent)
        self._draw_rows()

    def __repr__(self) -> str:
        return f"<steering panel: {self._said()}>"
