"""What a training panel shows and does, without widgets: a form, a run, and what may be asked of it now."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..costs import Cost, Probe, duration
from ..launcher import Launched, active, launch
from ..runs import Tail, find_runs, fresh
from ..sweeps import launch_sweep
from .curves import thinned
from .forms import TrainingForm
from .sweeping import Swept, Varying

if TYPE_CHECKING:
    from ..diagnosis import Finding

ACTIONS = ("launch", "pause", "resume", "stop", "save")
STALE = 10.0  # seconds without a heartbeat, after which a run that lives counts as stuck
EVERY = 2.0  # seconds between looks at which runs there are
ASKED = {"pause": "pausing", "stop": "stopping", "save": "saving"}


@dataclass(frozen=True)
class View:
    """How a training stands.

    Attributes:
        state: of the run, "" where there is none; "stuck" where its process lives and says nothing.
        said: the same for a reader, with progress, speed and time left.
        share: of the steps that are done.
        can: which of ACTIONS mean something now.
        curves: one row per measurement: tokens, and what was measured.
    """

    state: str
    said: str
    share: float
    can: frozenset[str]
    curves: pd.DataFrame
    notes: tuple[str, ...]
    findings: "tuple[Finding, ...]"
    error: str

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The last of each measured number."""
        last = {name: values.dropna() for name, values in self.curves.select_dtypes("number").items()}
        return {name: float(values.iloc[-1]) for name, values in last.items() if len(values)}


class Training:
    """Launches a training, or a sweep, as a process of its own, or attaches to one that is there; says how it stands.

    Nothing here waits: what is asked of a run is written to its folder, and `view` shows when it came true.

    Attributes:
        varying: what the form is swept over.
        swept: the SAEs of the sweep that is shown, if it is one.
    """

    def __init__(self, form: TrainingForm, folder: str | Path = "runs"):
        self.form, self.folder, self.run = form, Path(folder), None
        self.varying = Varying(form)
        self.swept: Swept | None = None
        self._probe: Probe | None = None
        self._looked, self._there = -EVERY, []
        self._forget()

    @property
    def runs(self) -> list[str]:
        """The runs that one could attach to, the youngest first."""
        found = [(run.status.get("heartbeat", 0.0), str(run.folder)) for run in find_runs(self.folder)]
        return [name for _, name in sorted(found, reverse=True)]

    @property
    def name(self) -> str:
        """What the run that is shown is called, as in `runs`: from the folder of runs, if it is there; "" for none."""
        if self.run is None:
            return ""
        folder, whole = self.run.folder, self.folder.absolute()
        return str(self.folder / folder.relative_to(whole) if folder.is_relative_to(whole) else folder)

    def launch(self) -> None:
        """Raises:
        ValueError, TypeError, KeyError, RunInUse: as `sae_lab.launch`.
        """
        if self.varying.active:
            self.attach(launch_sweep(self.varying.plan, self.free))
        else:
            self.attach(launch(**{"run": self.free} | self.form.knobs))

    def attach(self, run: str | Path | Launched) -> None:
        """Shows a run, of whichever process, with all of its history.

        Raises:
            FileNotFoundError: if there is none.
        """
        found = Launched(Path(getattr(run, "folder", run)).absolute())
        if not found.exists:
            raise FileNotFoundError(f"No run in {str(found.folder)!r}. There are: {', '.join(self.runs) or 'none'}.")
        self.run = found
        self._forget()
        self.swept = Swept(found.folder) if found.kind == "sweep" else None

    def ask(self, action: str) -> None:
        """One of ACTIONS.

        Raises:
            RuntimeError: if it means nothing now.
        """
        can = self._can(self.run.status if self.run else {})
        if action not in can:
            raise RuntimeError(
                f"Cannot {action} now: {self.view().said}. Possible: {', '.join(sorted(can)) or 'none'}."
            )
        if action == "launch":
            self.launch()
        elif action == "resume":
            self.run.resume()
        elif action == "stop" and self.run.measuring:
            self.run.stop(timeout=0.1)
        else:
            self.run.control(action)

    def estimate(self) -> Probe:
        """Begins to measure what the form's training would cost, in a process of its own.

        Raises:
            ValueError: if the form has to be mended first.
        """
        if self._probe is not None:
            self._probe.stop()
        self._probe = Probe(self.form.job)
        return self._probe

    @property
    def cost(self) -> Cost | None:
        """What was measured; None before that.

        Raises:
            RuntimeError: if the process that measures failed; with its last words.
        """
        return self._probe.cost if self._probe is not None else None

    def view(self) -> View:
        """How it stands now; cheap where nothing has changed."""
        if self.run is None:
            return View("", self._hint, 0.0, self._can({}), self._curves, (), (), "")
        status = self.run.status
        state = self._state(status)
        if self._read() or state != self._seen:
            self._seen = state
            self._findings = self._examined() if len(self._curves) else ()
        share = status["step"] / status["steps"] if status.get("steps") else 0.0
        error = status.get("error") or (self.run.errors[-2000:] if state in ("failed", "lost") else "")
        said = _said(state, status, self.run.wanted)
        return View(state, said, share, self._can(status), self._curves, self._notes, self._findings, error)

    @property
    def active(self) -> list[str]:
        """The runs that are at work, or paused; those of a sweep count as one."""
        return active(self.folder)

    @property
    def _hint(self) -> str:
        """Said where no run is shown; looked up anew every few seconds."""
        if time.monotonic() - self._looked > EVERY:
            self._looked, self._there = time.monotonic(), self.active
        here = self._there
        are = f"{len(here)} runs are" if len(here) > 1 else "1 run is"
        return f"no run yet · {are} active: {', '.join(here)}" if here else "no run yet"

    def _examined(self) -> "tuple[Finding, ...]":
        from ..diagnosis import doctor

        try:
            return tuple(doctor(self.run).findings)
        except (KeyError, ValueError, TypeError, OSError) as error:  # files lie
            said = f"This run cannot be examined: {type(error).__name__}: {error}"
            self._notes = tuple(dict.fromkeys((*self._notes, said)))
            return ()

    def _read(self) -> bool:
        """Whether the log, or what was recovered, has something new; it is then in `_curves` and `_notes`."""
        fresh, recovered = self._tail.new(), self.run.recovered
        if self._tail.restarted:
            self._rows = {}
        if not fresh and len(recovered) == self._known:
            return False
        self._known = len(recovered)
        for row in fresh:
            if "fvu" in row:
                self._rows[row["step"]] = row
        self._notes = tuple(dict.fromkeys((*self._notes, *(row["note"] for row in fresh if row.get("note")))))
        log = pd.json_normalize([self._rows[step] for step in sorted(self._rows)])
        self._curves = thinned(pd.concat([log, pd.DataFrame(recovered)], ignore_index=True))
        return True

    def _forget(self) -> None:
        self._tail = Tail(self.run.folder / "log.jsonl") if self.run else None
        self._rows: dict[int, dict] = {}
        self._curves, self._notes, self._findings, self._known, self._seen = pd.DataFrame(), (), (), 0, ""

    def _state(self, status: dict[str, Any]) -> str:
        silent = time.time() - status.get("heartbeat", time.time())
        return "stuck" if status["state"] in ("running", "paused") and silent > STALE else status["state"]

    def _can(self, status: dict[str, Any]) -> frozenset[str]:
        state, alive = status.get("state", ""), self.run is not None and self.run.alive
        wrong = self.form.errors or not self.form.detachable or self.varying.errors
        can = set() if wrong or alive else {"launch"}
        sweep = self.swept is not None
        if alive and (state in ("starting", "running") or (sweep and state == "evaluating")):
            can |= {"pause", "stop"} if sweep else {"pause", "stop", "save"}
        if alive and state in ("paused", "evaluating"):
            can |= {"stop"}
        if (alive and state == "paused") or (state in ("stopped", "failed", "lost") and not alive and self.run.job):
            can |= {"resume"}
        return frozenset(can)

    @property
    def free(self) -> str:
        """Where what is launched next goes."""
        asked = self.form.values
        name = f"{asked['variant']}-{asked['site']}"
        return str(fresh(self.folder / (f"sweep-{name}" if self.varying.active else name)))


def _said(state: str, status: dict[str, Any], wanted: str) -> str:
    word = ASKED.get(wanted, state) if state in ("running", "starting", "evaluating") else state
    parts = [word, f"step {status['step']:,} of {status['steps']:,}" if status.get("steps") else ""]
    if state == "running":
        parts.append(f"{status.get('rate') or 0:,.0f} tokens/s")
        parts.append(f"{duration(status['eta'])} left" if status.get("eta") is not None else "")
    return " · ".join(part for part in parts if part)
