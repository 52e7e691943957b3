"""The panel of latents: search, read what one fires on and promotes, try a text on it, write down what it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd

from ...models import LM
from ...runs import Run
from ...windows import Card
from .. import look
from ..latents import Latents
from ..selection import Selection
from .grid import Grid
from .panel import Panel

QUANTILES = {"strongest": 0, "by quantile": 4}
NEAR = 6  # neighbours to click
TOKENS = 200_000


class LatentsPanel(Panel):
    """The latents of a run, or of whichever run the selection names. `latents` is what is behind it, no widgets."""

    def __init__(
        self,
        run: Run | str | Path | None = None,
        lm: LM | None = None,
        *,
        peers: Sequence[Run | str | Path] = (),
        selection: Selection | None = None,
    ):
        self.selection = selection if selection is not None else Selection()
        self.latents: Latents | None = None
        self._lm, self._peers, self._seen = lm, peers, ("", "")
        self._search = W.Text(placeholder="number or words", description="search", continuous_update=False)
        self._alive = W.Checkbox(description="hide dead ones", indent=False, value=True, layout={"width": "auto"})
        self._try = W.Text(
            placeholder="your own text: which latents fire on it, and where",
            description="try",
            continuous_update=False,
            layout={"width": "26rem"},
        )
        self._order = W.ToggleButtons(
            options=list(QUANTILES), tooltips=["its strongest firings", "a sample of all its firings, in four parts"]
        )
        self._gather = W.Button(icon="book", layout={"width": "auto"})
        self._comment = W.Text(
            placeholder="what it is, in your words; kept in the run", description="comment", continuous_update=False
        )
        self._grid, self._card, self._count, self._near = Grid("No latent is like this."), W.HTML(), W.HTML(), W.HBox()
        for control in (self._search, self._alive):
            control.observe(self.stay(lambda _: self._list()), "value")
        self._try.observe(self.stay(lambda _: self._tried()), "value")
        self._order.observe(self.stay(lambda _: self._draw()), "value")
        self._comment.observe(self.stay(lambda change: self._commented(change["new"])), "value")
        self._grid.observe(self.stay(lambda change: self.look(int(change["new"])) if change["new"] else None), "on_top")
        self._grid.observe(self.stay(lambda change: self._mark(change["new"])), "chosen")
        self._gather.on_click(self.stay(lambda _: self.gather()))
        self.selection.observe(self.stay(lambda change: self.attach(change["new"])), "run")
        self.selection.observe(self.stay(lambda _: self._draw()), "latent")
        top = W.HBox([self._search, self._alive, self._try, self._count])
        top.add_class("sae-buttons")
        self._near.add_class("sae-buttons")
        self._one = W.VBox([W.HBox([self._order, self._comment]), self._card, self._near])
        super().__init__(top, self._gather, self._grid, self._one)
        where = run if run is not None else self.selection.run
        self.attach(where.folder if isinstance(where, Run) else where)
        self.watch()

    def attach(self, run: str | Path) -> None:
        """Shows another run."""
        if self.latents is not None and str(self.latents.run.folder) == str(run):
            return
        self.latents = Latents(run, self._lm, self._peers) if str(run) else None
        if str(run):
            self.selection.run = str(run)
        self._list()
        self._draw()

    def look(self, latent: int) -> None:
        """Shows a latent, here and in all panels of the selection."""
        self.selection.latent = int(latent)

    def search(self, words: str) -> pd.DataFrame:
        """As if it was typed; the rows that are found."""
        self._search.value = words
        return self._shown() if self.ready else pd.DataFrame()

    def wait(self, timeout: float | None = None) -> "LatentsPanel":
        """This panel, once it has read what it began to."""
        if self.latents is not None:
            self.latents.wait(timeout)
        self.refresh()
        return self

    def gather(self, tokens: int = TOKENS) -> None:
        """Reads text in the background, so that every latent has something to show.

        Raises:
            RuntimeError: while it is at it.
        """
        self.latents.begin_gathering(tokens)
        self.refresh()

    def refresh(self) -> None:
        """Draws what was read since the last look."""
        seen = (self.latents.working, self.latents.error) if self.latents is not None else ("", "")
        if seen != self._seen:
            self._seen = seen
            self._list()
            self._draw()

    def snapshot(self) -> str:
        shown = self._shown()
        listed = look.frame(shown.head(20).reset_index(names="latent")) if shown is not None else ""
        return listed + self._card.value

    @property
    def ready(self) -> bool:
        """Whether there is something to show."""
        return self.latents is not None and self.latents.run.trained and self.latents.ready

    def _shown(self) -> pd.DataFrame | None:
        if not self.ready:
            return None
        text = self._try.value.strip()
        return self.latents.strongest(text) if text else self.latents.search(self._search.value, self._alive.value)

    def _list(self) -> None:
        """Draws the table that was asked for."""
        ready, trained = self.ready, self.latents is not None and self.latents.run.trained
        self._offer(trained and not (ready and self.latents.named))
        self._grid.layout.display = self._one.layout.display = "" if ready else "none"
        if not ready:
            self._count.value = look.told(self._why())
            return
        shown = self._shown()
        self._grid.show(shown.reset_index(names="latent").set_index(shown.index.astype(str)))
        self._count.value = look.told(f"{len(shown):,} of {self.latents.sae.cfg.d_sae:,} latents")

    def _offer(self, wanted: bool) -> None:
        """The button that reads text, if something is missing; it says what."""
        self._gather.layout.display = "" if wanted else "none"
        if wanted:
            working = self.latents.working
            self._gather.disabled = bool(working)
            missing = "Name concepts" if self.ready else f"Read {TOKENS:,} tokens"
            self._gather.description = f"{working} ..." if working else missing
            self._gather.tooltip = "what every latent fires on, or which concept it fits best; kept in the run"

    def _why(self) -> str:
        if self.latents is None:
            return "no run is chosen: click one in the panel of runs, or give LatentsPanel(run)"
        if not self.latents.run.trained:
            return f"{self.latents.run.name} has no trained SAE yet"
        return self.latents.error or f"nobody has read text with {self.latents.run.name} yet"

    def _tried(self) -> None:
        self._list()
        shown = self._shown()
        if self._try.value.strip() and shown is not None and len(shown) and self.selection.latent not in shown.index:
            self.look(int(shown.index[0]))
        self._draw()

    def _mark(self, labels: Sequence[str]) -> None:
        self.selection.latents = tuple(int(label) for label in labels)

    def _commented(self, said: str) -> None:
        if (
            self.ready
            and self.selection.latent >= 0
            and said.strip() != self.latents.run.comments.get(self.selection.latent, "")
        ):
            self.latents.run.comment(self.selection.latent, said)

    def _draw(self) -> None:
        """Draws the latent that is looked at."""
        latent = self.selection.latent
        if not self.ready or not 0 <= latent < self.latents.sae.cfg.d_sae:
            self._card.value, self._near.children = look.told("Click a latent to read it.") if self.ready else "", ()
            return
        card, row = self.latents.card(latent), self.latents.table.loc[latent]
        self._grid.on_top = str(latent)
        self._comment.value = self.latents.run.comments.get(latent, "")
        self._card.value = _head(card, row) + self._own(latent) + _texts(card, QUANTILES[self._order.value])
        self._near.children = [W.HTML(look.told("near it:")), *map(self._button, _neighbours(card))]

    def _own(self, latent: int) -> str:
        """The text of one's own, shaded by this latent."""
        text = self._try.value.strip()
        if not text:
            return ""
        words, z = self.latents.on(text)
        values = z[:, latent].tolist()
        top = max(*values, self.latents.card(latent)[0].activation if len(self.latents.card(latent)) else 0.0)
        return look.heading("your text") + look.tokens(
            words, values, top, int(np.argmax(values)) if max(values) > 0 else -1
        )

    def _button(self, near: tuple[int, str]) -> W.Button:
        button = W.Button(description=str(near[0]), tooltip=near[1], layout={"width": "auto"})
        button.on_click(self.stay(lambda _: self.look(near[0])))
        return button

    def __repr__(self) -> str:
        run = self.latents.run.folder if self.latents is not None else "no run"
        return f"<latents panel: {run}, latent {self.selection.latent if self.selection.latent >= 0 else 'none'}>"


def _neighbours(card: Card) -> list[tuple[int, str]]:
    """Latents to go to, each with the reason."""
    near = {n: f"fires with it: Jaccard {j:.2f}, {both:,} tokens" for n, j, both in card.cofiring[:NEAR]}
    return list((near | {n: f"a direction like its own: cosine {c:.2f}" for n, c in card.decoder[:NEAR]}).items())


def _head(card: Card, row: Any) -> str:
    kind = {"dead": "dead: it never fired", "dense": "dense: it fires on a tenth of all tokens or more"}.get(
        row["kind"], ""
    )
    shown = [("latent", str(card.latent)), ("fires on", f"{card.density:.3%} of tokens")]
    shown += [("strongest", f"{row['activation']:.4g}")] if row["kind"] != "dead" else []
    shown += [("found in", f"{row['found in']} other seeds")] if "found in" in row else []
    shown += [("concept", f"{row['concept']} (F1 {row['F1']:.2f})")] if row.get("concept") else []
    said = look.told(f"{row['explanation']} (detection {row['detection']:.2f})") if row["explanation"] else ""
    logits = [
        look.heading(name) + look.table([(repr(token), f"{by:+.2f}") for token, by in effects[:8]])
        for name, effects in (("raises the logits of", card.promoted), ("lowers", card.suppressed))
    ]
    held = np.flatnonzero(card.histogram)
    first, last = (int(held[0]), int(held[-1]) + 1) if len(held) else (0, len(card.histogram))
    spread = f"activations from {card.edges[first]:.2g} to {card.edges[last]:.2g}, on a log scale; "
    spread += f"{int(card.histogram.sum()):,} firings"
    chart = look.bars(card.histogram[first:last].tolist(), spread)
    return look.figures(shown) + (look.told(kind, wrong=True) if kind else "") + said + look.columns(chart, *logits)


def _texts(card: Card, quantiles: int) -> str:
    top = card[0].activation if len(card) else 0.0
    groups = {"its strongest firings, one per document": card.top}
    if quantiles:
        parts = enumerate(card.quantiles(quantiles)[::-1])
        groups = {f"quarter {quantiles - i} of {quantiles} by activation": part[:5] for i, part in parts}
    shown = ""
    for name, contexts in groups.items():
        texts = "".join(look.tokens(c.tokens, c.values, top, c.peak) for c in contexts)
        shown += look.heading(name) + (texts or look.told("none"))
    return shown
