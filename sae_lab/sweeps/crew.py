"""Groups of a sweep in processes of their own, one at a time on each device; one that is killed begins again.

A group's process is told on its stdin what to do, writes the run folders of its SAEs and nothing else, hears the wishes
in the sweep's folder, and leaves with a checkpoint when the sweep's own process is gone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..runs import Run, RunInUse, Tail
from ..training import Record, Step
from .plan import Asked, Plan
from .work import HEARTBEAT, Stopped, Worker, beat, heed, names_of

DEATHS = 5  # of a group's process, without a new checkpoint between them, before the sweep gives up
LEAVING = 60.0  # seconds that a process has for its last checkpoint
STOPPED = 75  # exit status of one that was told to stop


@dataclass
class _Group:
    """A group on its way.

    Attributes:
        device: whose process it is in; None: it has none.
        deaths: of its process, since it was last seen to get on.
        reached: newest step that was kept.
    """

    saes: list[Asked]
    run: Run  # of its first SAE that is trained
    device: int | None = None
    child: Any = None
    done: bool = False
    deaths: int = 0
    reached: int = 0
    record: Record | None = None


class Crew:
    """The processes of a sweep, steered by this one."""

    def __init__(self, plan: Plan, run: Run, groups: Sequence[list[Asked]], slots: int | None = None):
        self.plan, self.run, self.slots = plan, run, slots or len(plan.devices)
        self.groups = [_Group(group, Run(run.folder / group[0].name)) for group in groups]
        self.tails = [Tail(group.run.folder / "log.jsonl") for group in self.groups]
        self.trainings = [plan.job_of(group[0], run.folder).train for group in groups]
        self.worked, self.beaten, self.shown = False, 0.0, -1

    def steps(self) -> Iterator[Step]:
        """What all have done, now and then.

        Raises:
            Stopped: if that is asked for, of the sweep or of one of its SAEs.
            RuntimeError: if a process fails; with its last words.
        """
        for group in self.groups:
            group.done = all(_settled(Run(self.run.folder / asked.name)) for asked in group.saes)
        try:
            while not all(group.done for group in self.groups):
                self._start()
                if (step := self._step()) is not None:
                    yield step
                self._heed()
                time.sleep(0.05)
                self._look()
            self.beaten = 0.0
            if (step := self._step()) is not None:
                yield step
        finally:
            self._end()

    def _start(self) -> None:
        """A process for the next groups, as far as there are devices."""
        busy = [group.device for group in self.groups if group.child]
        waiting = iter([group for group in self.groups if not (group.done or group.child)])
        for device in range(self.slots):
            if device not in busy and (group := next(waiting, None)):
                self.worked, group.device = True, device
                group.child = self._process(group)

    def _process(self, group: _Group) -> Any:
        where = self.plan.devices[group.device]
        env, here = {**os.environ, "PYTHONUNBUFFERED": "1"}, self.plan.devices.count("cpu")
        if where == "cpu" and "OMP_NUM_THREADS" not in env:
            env["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // here))
        command = [sys.executable, "-m", "sae_lab.sweeps", str(self.run.folder), "group"]
        with self.run.open_errors() as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": errors, "stderr": errors}
            child = subprocess.Popen(command, env=env, text=True, start_new_session=True, **pipes)
        with child.stdin as told:
            told.write(json.dumps(task(self.plan, group.saes, where)))
        return child

    def _look(self) -> None:
        """What became of the processes.

        Raises:
            Stopped, RuntimeError: as `steps`.
        """
        for group in self.groups:
            status = group.child.poll() if group.child else None
            if status is None:
                continue
            told, group.child = getattr(group.child, "said", ""), None
            if status == STOPPED:
                raise Stopped
            if status > 0:
                said = [told] if told else self.run.errors.strip().splitlines() or ["without a word"]
                raise RuntimeError(f"The group of {group.saes[0].name} failed: {said[-1]}")
            group.done = status == 0
            kept = max(group.run.checkpoints.steps, default=0)
            group.deaths = 1 if kept > group.reached else group.deaths + (status < 0)
            group.reached = kept
            if status < 0:
                self.run.append({"step": self.shown, "note": f"{group.run.name}: killed by signal {-status}"})
            if group.deaths > DEATHS:
                raise RuntimeError(
                    f"The process of {group.run.name} was killed {DEATHS + 1} times at step {kept} (signal {-status}): "
                    "if memory ran out, give a smaller memory=."
                )

    def _step(self) -> Step | None:
        """A step of the whole sweep, where there is something new to say."""
        if time.monotonic() - self.beaten < HEARTBEAT:
            return None
        self.beaten = time.monotonic()
        index, tokens, rate = 0, 0, 0.0
        for group, tail, training in zip(self.groups, self.tails, self.trainings):
            status = group.run.status
            rows = [row for row in tail.new() if "fvu" in row]
            if rows:
                group.record = Record(**{f.name: rows[-1][f.name] for f in fields(Record) if f.name in rows[-1]})
            index, tokens = index + status["step"], tokens + status["step"] * training.batch
            rate += (status.get("rate") or 0.0) if group.child else 0.0
        records = [group.record for group in self.groups if group.record]
        if not records or index == self.shown:
            return None
        self.shown, total = index, sum(training.steps for training in self.trainings)
        step = Step(index, total, tokens, rate, index, tuple(records))
        beat(self.run, step, tokens / max(1, index))
        return step

    def _heed(self) -> None:
        """Raises:
        Stopped: once all processes have left.
        """
        if self.run.wanted == "stop":
            self._end()
        heed(self.run)

    def _end(self) -> None:
        """Asks all processes to leave, and sees them off."""
        there = [group.child for group in self.groups if group.child]
        for child in there:
            child.terminate()
        end = time.monotonic() + LEAVING
        for child in there:
            try:
                child.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for group in self.groups:
            group.child = None


def task(plan: Plan, group: Sequence[Asked], device: str | None) -> dict[str, Any]:
    """What a group's process is told: JSON."""
    made = replace(plan, job=replace(plan.job, device=device)) if device else plan
    return {"plan": made.to_json(), "group": names_of(group)}


def asked_to_leave() -> Callable[[], bool]:
    """Whether this process was told to, by a signal or by the end of the one that started it."""
    told, parent = [], os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: told.append("leave"))
    return lambda: bool(told) or os.getppid() != parent


def work_off(folder: str, told: dict[str, Any], ended: Callable[[], bool]) -> None:
    """A group's process: trains and measures it.

    Raises:
        Stopped: if it was told to leave.
        RunInUse: if somebody else is at it, after a minute still.
    """
    plan, run = Plan.from_json(told["plan"]), Run(folder)
    known = {asked.name: asked for asked in plan.saes}
    worker, patience = Worker(plan, run, lambda: _wait(run, ended), ended=ended), time.monotonic() + LEAVING
    while True:
        try:
            for _ in worker.steps([known[name] for name in told["group"]]):
                pass
            return
        except RunInUse:  # by the process of a sweep that was killed, on its way out
            if time.monotonic() > patience:
                raise
            time.sleep(0.5)


def _wait(run: Run, ended: Any) -> None:
    while not ended() and run.wanted == "pause":
        time.sleep(0.1)
    if ended() or run.wanted == "stop":
        raise Stopped


def _settled(run: Run) -> bool:
    """Whether there is nothing left to do for an SAE."""
    return (run.trained and bool(run.eval)) or bool(run.status.get("diverged"))
