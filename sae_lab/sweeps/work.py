"""A sweep at work: group after group is trained on the stream, then each SAE is measured, once.

A group is one `train()` call: one forward pass of the model per batch for all its SAEs, a run folder each. The sweep's
own folder is a run too: it has a status, a control file and, where it is detached, a process.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..evaluation import evaluate
from ..launcher import Launched, begin, reader, stream
from ..models import LM
from ..reading import held_out
from ..report import write_page
from ..runs import Run
from ..saes import build
from ..training import Diverged, Step, train
from .plan import Asked, Plan
from .results import Sweep

HEARTBEAT = 0.5  # seconds
SPLICED = 32_768  # tokens, at most, that are run through the model with an SAE in place


class _Stopped(Exception):
    """The sweep, or a training of it, was told to stop."""


def sweep(
    variants: str | list[str] | tuple[str, ...] | Mapping[str, dict] = (),
    *,
    folder: str | Path = "runs/sweep",
    detach: bool = False,
    **knobs: Any,
) -> Sweep:
    """Trains and measures variants x k x d_sae x seeds on one stream; the same call again goes on, or reads it.

        sweep(["topk", "jumprelu"], site="L1R", k=[16, 32], d_sae=[1024], seeds=3, tokens=500_000, folder="runs/sweep")

    The knobs are those of Plan, of Job, of TrainConfig and of every variant; {"topk": {"aux_weight": 0}, "relu": {}} as
    `variants` gives one of them knobs of its own. The weights, gradients and moments of an SAE take 32 * d_in * d_sae
    bytes: `at_once` says how many are held at a time, and each further group costs a reading of the whole text. One
    that diverges is left out, and those of its group begin anew without it. With `detach` a process of its own does it
    all, and `.run` steers that: pause(), resume(), stop(), wait().

    Raises:
        ValueError, KeyError, TypeError, FileNotFoundError: for what can be asked wrongly; if the folder holds another
            sweep.
        RunInUse: if a sweep is at work there.
    """
    plan, folder = Plan.of(variants, **knobs).check(detach), Path(folder)
    if detach:
        launch_sweep(plan, folder)
        return Sweep.read(plan, folder)
    for _ in run_sweep(plan, folder):
        pass
    return Sweep.load(folder)


def launch_sweep(plan: Plan, folder: str | Path) -> Launched:
    """A process of its own that trains and measures a plan.

    Raises:
        ValueError, KeyError, TypeError, RunInUse: as `sweep`.
    """
    run, asked = Launched(Path(folder).absolute()), {"kind": "sweep", **plan.check(detached=True).to_json()}
    run.describe(asked)  # another sweep's folder is refused here, not by the process
    return begin(run, asked)


def run_sweep(plan: Plan, folder: str | Path) -> Iterator[Step]:
    """The steps of a sweep, counted over all groups; what was trained or measured before is left as it is.

    Raises:
        ValueError, RunInUse: as `sweep`.
    """
    run = Run(folder)
    run.acquire()
    try:
        run.describe({"kind": "sweep", **plan.to_json()})
        yield from _recorded(run, _Work(plan, run))
    finally:
        run.release()


def _recorded(run: Run, work: "_Work") -> Iterator[Step]:
    """The work's steps; the folder's status says how they ended."""
    if run.status["state"] in ("none", "stopped", "failed", "lost"):
        run.control("run")  # a wish of the time before
    try:
        yield from work.steps()
        run.mark("done")
    except _Stopped:
        run.mark("stopped")
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        run.mark("stopped")
        raise
    except BaseException as error:
        run.mark("failed", error=f"{type(error).__name__}: {error}")
        raise


class _Work:
    def __init__(self, plan: Plan, run: Run):
        self.plan, self.run, self.beaten = plan, run, 0.0
        self.trainings = [plan.job_of(group[0], run.folder).train for group in plan.groups]
        self.total = sum(training.steps for training in self.trainings)
        self.before, self.read = 0, 0  # steps and tokens of the groups that are done

    @cached_property
    def lm(self) -> LM:
        """Loaded when there is something to do."""
        lm, jobs = reader(self.plan.job), (self.plan.job_of(group[0], self.run.folder) for group in self.plan.groups)
        for text, column in dict.fromkeys((job.text, job.column) for job in jobs):
            held_out(lm, text, "test", 0, column=column).block(0)  # one too short fails now
        return lm

    def steps(self) -> Iterator[Step]:
        """Raises:
        _Stopped: if that is asked for.
        """
        for number, group in enumerate(self.plan.groups):
            done = self.trainings[:number]
            self.before, self.read = sum(t.steps for t in done), sum(t.steps * t.batch for t in done)
            while live := self._live(group):
                yield from self._train(live)
                self._heed()
            for asked in group:
                self._measure(asked)
                self._heed()
        worked = "lm" in vars(self)
        if worked or not (self.run.folder / "report.html").exists():
            found = Sweep.load(self.run.folder)
            write_page(
                self.run.folder / "report.html", "A sweep of sparse autoencoders", found.subtitle, found.sections
            )

    def _run(self, asked: Asked) -> Run:
        return Run(self.run.folder / asked.name)

    def _live(self, group: list[Asked]) -> list[Asked]:
        """Those of a group that are to be trained, together; none once all are.

        A training that was begun with others than these cannot go on: its checkpoints are of another stream id. That is
        so after one of them diverged; it begins anew.
        """
        live = [asked for asked in group if not self._run(asked).status.get("diverged")]
        if len(live) < len(group) and self.plan.peers(group[0]):
            return []  # what peers learn hangs on those that are lost
        if all(self._run(asked).trained for asked in live):
            return []
        if any(self._run(asked).trained and self._mates(asked) != _names(live) for asked in live):
            live = [asked for asked in live if not self._run(asked).trained]
        for asked in live:
            if self._mates(asked) not in ([], _names(live)):
                self._run(asked).discard()
        return live

    def _mates(self, asked: Asked) -> list[str]:
        run = self._run(asked)
        return run.config.get("stream", []) if run.exists else []

    def _train(self, group: list[Asked]) -> Iterator[Step]:
        """One pass over the stream, for all of a group, to its end or to where something else is asked for."""
        jobs = [self.plan.job_of(asked, self.run.folder) for asked in group]
        source = stream(jobs[0], self.lm, self.plan.needs)
        width = source.d_in(jobs[0].site)
        saes = [build(job.variant, d_in=width, seed=job.seed, **job.own).to(self.lm.device) for job in jobs]
        folders = [job.run for job in jobs]
        try:
            with closing(train({jobs[0].site: saes}, source, run=folders, config=jobs[0].train)) as steps:
                for step in steps:
                    yield self._counted(step)
                    if self.run.wanted != "run":
                        return
        except Diverged as error:
            return self._give_up([asked for asked, sae in zip(group, saes) if sae in error.saes], error)
        if not all(self._run(asked).trained for asked in group):
            raise _Stopped  # by a word to one of the group

    def _give_up(self, lost: list[Asked], error: Diverged) -> None:
        """Marks SAEs as diverged, for good."""
        for asked in lost:
            self._run(asked).mark("failed", error=str(error), diverged=True)
        self.run.append({"step": self.before, "note": f"{', '.join(_names(lost))} left out: {error}"})

    def _measure(self, asked: Asked) -> None:
        run, tokens = self._run(asked), self.plan.job.evaluation
        if run.trained and not run.eval:
            self.run.mark("evaluating")
            found = evaluate(run.sae.to(self.lm.device), self.lm, tokens=tokens, spliced=min(SPLICED, tokens))
            run.write_eval(found.to_json())

    def _counted(self, step: Step) -> Step:
        """A step of the whole sweep."""
        done, last, batch = self.before, step.index == step.steps, step.tokens / step.index
        step = replace(
            step,
            index=done + step.index,
            steps=self.total,
            tokens=self.read + step.tokens,
            measured=done + step.measured,
        )
        if last or time.monotonic() - self.beaten > HEARTBEAT:
            self.beaten = time.monotonic()
            eta = (step.steps - step.index) * batch / step.rate if step.rate else None
            numbers = {"step": step.index, "steps": step.steps, "tokens": step.tokens, "rate": step.rate, "eta": eta}
            self.run.beat("running", **numbers)
        return step

    def _heed(self) -> None:
        """Waits while a pause is asked for; every training has left a checkpoint by now.

        Raises:
            _Stopped: if an end is asked for.
        """
        while (wish := self.run.wanted) != "run":
            if wish != "pause":
                self.run.control("run")
            if wish == "stop":
                raise _Stopped
            if wish == "pause":
                self.run.mark("paused")
                time.sleep(0.1)


def _names(saes: list[Asked]) -> list[str]:
    return [asked.name for asked in saes]
