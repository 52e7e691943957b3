"""A run with a process of its own: started, found again, paused, resumed, stopped."""

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs import UNFINISHED, Damaged, Run, RunInUse, find_runs, fresh, lives
from ..training import Step
from .job import Job, checked, run_job

if TYPE_CHECKING:
    import pandas as pd

MODULES = {"training": "launcher", "sweep": "sweeps"}  # what the process of each kind of job runs
_children: list[subprocess.Popen] = []  # of this process, so that each is reaped when it ends


@atexit.register
def _reap() -> None:
    for child in _children:
        child.poll()


class Launched(Run):
    """A run with a process of its own. `run.log`, `run.status`, `run.sae`, `run.eval` read what it writes."""

    @property
    def alive(self) -> bool:
        """Whether its process is there: at work, paused, or between the end of the training and the evaluation."""
        status = self.status
        own = status.get("pid") == os.getpid()  # trained in this process, which stays
        return status["state"] in UNFINISHED or (bool(self.job) and not own and lives(status))

    @property
    def measuring(self) -> bool:
        """Whether it is being measured, and deaf to all but SIGTERM; a sweep listens between two evaluations."""
        return self.status["state"] == "evaluating" and self.kind != "sweep"

    def wait(self, timeout: float | None = None) -> "Launched":
        """This run, once its process has ended.

        Raises:
            TimeoutError: if it has not after `timeout` seconds; it goes on.
            RuntimeError: if it failed or was killed; with the end of what it wrote to its error stream.
        """
        if not self._until(lambda state: not self.alive, timeout):
            raise TimeoutError(f"{self!r} is still going after {timeout} s. Wait longer, or look at .log and .errors.")
        status = self.status
        if status["state"] in ("failed", "lost"):
            said = status.get("error") or self.errors[-2000:] or "no word from it: killed, or the machine went down"
            raise RuntimeError(f"Run {str(self.folder)!r} {status['state']} at step {status['step']}: {said}")
        return self

    def pause(self, timeout: float = 60.0) -> "Launched":
        """Checkpoints and waits after the step in progress; the process stays.

        Raises:
            RuntimeError: if no process is at work, or it is past its training.
            TimeoutError: if it has not paused after `timeout` seconds; it still will.
        """
        if not self.alive or self.measuring:
            raise RuntimeError(
                f"Cannot pause {str(self.folder)!r}: no process is training it, it is {self.status['state']}."
            )
        self.control("pause")
        if not self._until(lambda state: state == "paused" or not self.alive, timeout):
            raise TimeoutError(f"{self!r} has not paused after {timeout} s; it will after the step in progress.")
        return self

    def resume(self) -> "Launched":
        """Lets a paused process go on, or starts a new one from the newest checkpoint of a run that has ended.

        Raises:
            ValueError: if the run was not launched, so that nobody knows its job.
        """
        if self.status["state"] in UNFINISHED:
            self.control("run")
        else:
            self._until(lambda state: not self.alive, 60.0)  # one that stopped a moment ago is still on its way out
            _start(self)
        return self

    def stop(self, timeout: float = 60.0) -> "Launched":
        """Checkpoints after the step in progress and ends the process; `resume` goes on later.

        An evaluation is broken off: `resume` begins it anew. A sweep ends when the one in progress is done.

        Raises:
            TimeoutError: if it has not ended after `timeout` seconds; it still will.
        """
        if self.alive and self.measuring:
            os.kill(self.status["pid"], signal.SIGTERM)
        elif self.alive:
            self.control("stop")
        if not self._until(lambda state: not self.alive, timeout):
            raise TimeoutError(f"{self!r} has not stopped after {timeout} s; it will after the step in progress.")
        return self

    def _until(self, holds: Any, timeout: float | None) -> bool:
        """Whether `holds(state)` came true in time."""
        end = None if timeout is None else time.monotonic() + timeout
        while not holds(self.status["state"]):
            if end is not None and time.monotonic() > end:
                return False
            for child in _children:
                child.poll()
            time.sleep(0.05)
        return True


def launch(job: Job | None = None, **knobs: Any) -> Launched:
    """Starts a training in a process of its own, or goes on with the one that the folder holds, and returns at once.

    The knobs are those of Job, of TrainConfig and of the variant: launch(variant="topk", site="L3R", k=32, lr=1e-3).

    Raises:
        ValueError, TypeError, KeyError: for what a job can ask wrongly; for a variant that only this process knows.
        RunInUse: if a process is at work in that folder.
    """
    if job and knobs:
        raise TypeError(f"launch() takes a job or knobs, not both: put {', '.join(knobs)} into the job.")
    job = job or Job.of(**knobs)
    checked(job)
    run = Launched(Path(job.run or fresh(f"runs/{job.variant}-{job.site}")).absolute())
    return begin(run, {**job.to_json(), "run": str(run.folder)})


def begin(run: Launched, asked: dict[str, Any]) -> Launched:
    """Starts the process of a folder that does what is asked.

    Raises:
        RunInUse: if one is at work there.
        ValueError: if something else was asked for there before.
    """
    if run.alive:
        raise RunInUse(
            f"{run!r} is at work already. Attach to it with Launched({str(run.folder)!r}), or choose another."
        )
    run.describe({**asked, "cwd": os.getcwd()}, file="job.json")
    return _start(run)


def ps(folder: str | Path = "runs") -> "pd.DataFrame":
    """The runs in a folder: state, progress, tokens per second, seconds left, last FVU and L0, process."""
    import pandas as pd

    rows = []
    for run in find_runs(folder):
        status, last = run.status, next((row for row in reversed(run.rows) if "fvu" in row), {})
        shown = {key: last.get(key) for key in ("fvu", "l0", "dead")}
        rows.append(status | shown | {"run": str(run.folder), "pid": status.get("pid") if run.alive else None})
    columns = ["run", "state", "step", "steps", "rate", "eta", "fvu", "l0", "dead", "pid"]
    return pd.DataFrame(rows, columns=columns)


def active(folder: str | Path = "runs") -> list[str]:
    """The folders of runs that are at work, or paused; the SAEs of a sweep are not counted beside it."""
    here = [str(run.folder) for run in find_runs(folder) if _at_work(Launched(run.folder))]
    return [name for name in here if str(Path(name).parent) not in here]


def _at_work(run: Launched) -> bool:
    try:
        return run.alive
    except Damaged:  # it is shown as that elsewhere
        return False


def _start(run: Launched) -> Launched:
    """Starts the process of a run: a new interpreter in a session of its own, never a fork of this one."""
    job = run.job
    if not job:
        raise ValueError(
            f"{run!r} was not launched: go on with it by what began it, the same train(..., run={str(run.folder)!r}), "
            f"sweep(..., folder={str(run.folder)!r}) or sae-lab line."
        )
    run.control("run")
    command = [sys.executable, "-m", f"sae_lab.{MODULES[job.get('kind', 'training')]}", str(run.folder.absolute())]
    with run.open_errors() as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd=job["cwd"],
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    run.mark("starting", child.pid)
    _children.append(child)
    return run


def main(folder: str) -> None:
    """The detached process of a training: the job of one folder."""
    serve(Run(folder), lambda job: run_job(Job.from_json(job)))


def serve(run: Run, work: Callable[[dict[str, Any]], Iterator[Step]]) -> None:
    """Does a detached process's work to its end; what is told to the folder, or by SIGTERM, stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook is no reason to stop
    signal.signal(signal.SIGTERM, lambda *_: _ended(run))
    run.mark("starting")
    job = {key: value for key, value in run.job.items() if key not in ("cwd", "kind")}
    try:
        for _ in work(job):
            pass
    except (RunInUse, SystemExit):
        raise
    except BaseException as error:
        run.mark("failed", error=f"{type(error).__name__}: {error}")
        raise


def _ended(run: Run) -> None:
    """SIGTERM: a training stops with a checkpoint, an evaluation at once."""
    if run.status["state"] == "evaluating":
        sys.exit(0)
    run.control("stop")
