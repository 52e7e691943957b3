"""What a panel of steering shows and does, without widgets: pushes, two texts side by side, a dose-response."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..library import load_sae
from ..models import LM
from ..reading import model_of
from ..runs import Run
from ..steering import Push, activity, doses, steer
from ..steering.pushes import READ
from .work import Work

NAMES = ("untouched", "steered")
OPENING = "One morning the old baker found"


class Steering(Work):
    """Pushes on latents of a run, and what the model writes with them.

    Writing and sweeping are done in a thread.

    Attributes:
        pushes: what is done to latents, all at once.
        texts: what was written so far, untouched and steered.
        changes: how the logits right behind the prompt moved.
        response: the dose-response that was measured last.
    """

    def __init__(self, run: Run | str | Path, lm: LM | None = None):
        super().__init__()
        self.run, self._lm = run if isinstance(run, Run) else Run(run), lm
        self.pushes: list[Push] = []
        self.texts: tuple[str, str] = ("", "")
        self.changes, self.response = pd.DataFrame(), None
        self.prompt, self._cancelled = OPENING, False

    @cached_property
    def sae(self) -> Any:
        return load_sae(self.run)

    @cached_property
    def lm(self) -> LM:
        return self._lm or model_of(self.sae)

    @cached_property
    def maxima(self) -> Any:
        """The largest activation of each latent on validation text: what strengths are multiples of."""
        return activity(self.sae, self.lm, tokens=READ).maximum

    def add(self, latent: int, **how: Any) -> None:
        """One more push.

        Raises:
            ValueError: for a latent that is not there, or is pushed already.
        """
        if not 0 <= latent < self.sae.cfg.d_sae:
            raise ValueError(f"No latent {latent}: this SAE has latents 0 to {self.sae.cfg.d_sae - 1}.")
        if latent in [push.latent for push in self.pushes]:
            raise ValueError(f"Latent {latent} is pushed already: change that push, or take it away.")
        self.pushes.append(Push(latent, **how))

    def change(self, latent: int, **how: Any) -> None:
        """Changes mode, strength or positions of a push.

        Raises:
            ValueError: for what a push cannot be.
        """
        self.pushes = [replace(push, **how) if push.latent == latent else push for push in self.pushes]

    def remove(self, latent: int) -> None:
        self.pushes = [push for push in self.pushes if push.latent != latent]

    def write(self, tokens: int = 40, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        """Begins to write, token by token, into `texts`.

        Raises:
            ValueError: where nothing is pushed.
            RuntimeError: while something else is going on.
        """
        how = {"max_new_tokens": tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        self._pushing()
        self.begin("writing", lambda: self._write(self.prompt, list(self.pushes), how))

    def sweep(self, concept: str, strengths: Sequence[float] = (0.5, 1.0, 2.0, 3.0), prompts: int = 16) -> None:
        """Begins to measure what the pushes do at several strengths; minutes on a CPU.

        Raises:
            ValueError: where nothing is pushed.
            RuntimeError: while something else is going on.
        """
        self._pushing()
        self.begin("measuring", lambda: self._sweep(concept, strengths, prompts))

    def cancel(self) -> None:
        """Stops writing after the token in progress."""
        self._cancelled = True

    @property
    def side(self) -> pd.DataFrame:
        """The other latents that the pushes moved as they are, in standard deviations, the most moved first.

        Those whose interval holds 0 are left out.
        """
        rows = self.response.side
        sure = (rows["moved_low"] > 0) | (rows["moved_high"] < 0)
        own = rows[sure & (rows["intervention"] == self.response.curve.name) & (rows["strength"] == 1.0)]
        return own.sort_values("moved", key=abs, ascending=False).drop(columns=["intervention", "strength"])

    def call(self, tokens: int = 40, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> str:
        """The same in Python."""
        pushes = ", ".join(_called(push) for push in self.pushes)
        given = {"max_new_tokens": tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        usual = {"max_new_tokens": 40, "temperature": 0.0, "top_p": 1.0, "seed": 0}
        how = "".join(f", {name}={value!r}" for name, value in given.items() if value != usual[name])
        return (
            f"sae = sl.load_sae({str(self.run.folder)!r})\nprint(sl.steer(sae, lm, [{pushes}], {self.prompt!r}{how}))"
        )

    def _write(self, prompt: str, pushes: list[Push], how: dict[str, Any]) -> None:
        self.texts, self.changes = ("", ""), pd.DataFrame()
        ready = [replace(push, unit=push.unit or float(self.maxima[push.latent]) or None) for push in pushes]
        made = steer(self.sae, self.lm, ready, prompt, **how)
        for written in made:
            if self._cancelled:
                return
            self.texts = tuple(written.texts)
        self.changes = made.changes

    def _sweep(self, concept: str, strengths: Sequence[float], prompts: int) -> None:
        self.response = doses(self.sae, self.lm, list(self.pushes), concept, strengths=strengths, prompts=prompts)

    def _pushing(self) -> None:
        if not self.pushes:
            raise ValueError("Nothing is pushed: add a latent first.")
        if not self.working:
            self._cancelled = False


def _called(push: Push) -> str:
    usual = {"mode": "add", "strength": 1.0, "unit": None, "positions": "all"}
    given = "".join(
        f", {name}={getattr(push, name)!r}" for name, value in usual.items() if getattr(push, name) != value
    )
    return f"sl.Push({push.latent}{given})"
