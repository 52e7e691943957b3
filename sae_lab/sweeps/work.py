"""A sweep at work: group after group is trained on the stream, then each SAE is measured, once.

A group is one `train()` call: one forward pass of the model per batch for all its SAEs, at whatever sites, a run folder
each. The sweep's own folder is a run too: it has a status, a control file and, where it is detached, a process. Where
devices are named, each group has a process (`crew`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..evaluation import evaluate
from ..launcher import Launched, begin, reader, stream
from ..models import LM
from ..reading import held_out, reading_once
from ..report import write_page
from ..runs import Run
from ..saes import SAE, build
from ..sites import Site
from ..training import Diverged, Step, train
from .groups import settled
from .plan import Asked, Plan
from .results import Sweep

HEARTBEAT = 0.5  # seconds
SPLICED = 32_768  # tokens, at most, that are run through the model with an SAE in place


class Stopped(Exception):
    """The sweep, or a training of it, was told to stop."""


def sweep(
    variants: str | list[str] | tuple[str, ...] | Mapping[str, dict] | Plan = (),
    *,
    folder: str | Path = "runs/sweep",
    detach: bool = False,
    **knobs: Any,
) -> Sweep:
    """Trains and measures variants x k x d_sae x seeds on one stream; the same call again goes on, or reads it.

        sweep(["topk", "jumprelu"], site="L1R", k=[16, 32], d_sae=[1024], seeds=3, tokens=500_000, folder="runs/sweep")
        sweep(["topk"], site=["L0R", "L1R", "L1M"], devices=["cuda:0", "cuda:1"], memory=60, ...)

    The knobs are those of Plan, of Job, of TrainConfig and of every variant; {"topk": {"aux_weight": 0}, "relu": {}} as
    `variants` gives one of them knobs of its own, and `own` does so for widths and sites, too. Instead of all that a
    Plan may be given, such as `suite_file` reads.

    All SAEs that are held at a time learn from one pass of the model over the text, and each further group costs a
    pass. The weights, gradients and moments of an SAE take 32 * d_in * d_sae bytes; `memory` says how many GB a group
    takes at most, `outlook` what that makes of a plan. `devices` gives each group a process, as many at a time as there
    are; one that is killed begins again from its checkpoint. An SAE
    that diverges is left out, and those of its group begin anew without it. With `detach` a process of its own does it
    all, and `.run` steers that: pause(), resume(), stop(), wait().

    Raises:
        ValueError, KeyError, TypeError, FileNotFoundError: for what can be asked wrongly; if the folder holds another
            sweep.
        RunInUse: if a sweep is at work there.
    """
    if isinstance(variants, Plan) and knobs:
        raise TypeError(f"sweep() takes a plan or knobs, not both: put {', '.join(knobs)} into the plan.")
    plan, folder = variants if isinstance(variants, Plan) else Plan.of(variants, **knobs), Path(folder)
    plan.check(detach)
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


def run_sweep(plan: Plan, folder: str | Path, crew: Any = None) -> Iterator[Step]:
    """The steps of a sweep, counted over all groups; what was trained or measured before is left as it is.

    `crew` does the groups, if not this process or, where devices are named, one for each of them.

    Raises:
        ValueError, RunInUse: as `sweep`.
    """
    run = Run(folder)
    run.acquire()
    try:
        run.describe({"kind": "sweep", **plan.to_json()})
        yield from _recorded(run, _all(plan, run, crew))
    finally:
        run.release()


def _all(plan: Plan, run: Run, crew: Any) -> Iterator[Step]:
    """The steps of all groups, here or in processes; then the report."""
    groups = settled(plan, run)
    work = _Here(plan, run, groups)
    if plan.devices and crew is None:
        from .crew import Crew as crew
    if crew is not None:
        work = crew(plan.check(detached=True), run, groups)
    yield from work.steps()
    if work.worked or not (run.folder / "report.html").exists():
        found = Sweep.load(run.folder)
        write_page(run.folder / "report.html", "A sweep of sparse autoencoders", found.subtitle, found.sections)


def _recorded(run: Run, steps: Iterator[Step]) -> Iterator[Step]:
    """The work's steps; the folder's status says how they ended."""
    if run.status["state"] in ("none", "stopped", "failed", "lost"):
        run.control("run")  # a wish of the time before
    try:
        yield from steps
        run.mark("done")
    except Stopped:
        run.mark("stopped")
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        run.mark("stopped")
        raise
    except BaseException as error:
        run.mark("failed", error=f"{type(error).__name__}: {error}")
        raise


class _Here:
    """All groups in this process, one after another."""

    def __init__(self, plan: Plan, run: Run, groups: Sequence[list[Asked]]):
        self.run, self.groups, self.beaten = run, groups, 0.0
        self.trainings = [plan.job_of(group[0], run.folder).train for group in groups]
        self.total = sum(training.steps for training in self.trainings)
        self.worker = Worker(plan, run, heed=lambda: heed(run), measuring=lambda: run.mark("evaluating"))

    @property
    def worked(self) -> bool:
        """Whether there was something to do."""
        return "lm" in vars(self.worker)

    def steps(self) -> Iterator[Step]:
        """Raises:
        Stopped: if that is asked for.
        """
        for number, group in enumerate(self.groups):
            done = self.trainings[:number]
            steps, tokens = sum(t.steps for t in done), sum(t.steps * t.batch for t in done)
            for step in self.worker.steps(group):
                yield self._counted(step, steps, tokens)

    def _counted(self, step: Step, done: int, read: int) -> Step:
        """A step of the whole sweep, of which other groups have done so many steps and read so many tokens."""
        last, batch = step.index == step.steps, step.tokens / step.index
        counts = {"index": done + step.index, "steps": self.total, "measured": done + step.measured}
        step = replace(step, **counts, tokens=read + step.tokens)
        if last or time.monotonic() - self.beaten > HEARTBEAT:
            self.beaten = time.monotonic()
            beat(self.run, step, batch)
        return step


class Worker:
    """Trains and measures groups of a sweep in this process.

    Attributes:
        run: the sweep's folder.
        heed: waits while a pause is asked for, and raises Stopped if an end is.
        measuring: told before each evaluation.
        ended: asked at every step whether to leave.
    """

    def __init__(
        self,
        plan: Plan,
        run: Run,
        heed: Callable[[], None],
        measuring: Callable[[], None] = lambda: None,
        ended: Callable[[], bool] = lambda: False,
    ):
        self.plan, self.run, self.heed, self.measuring, self.ended = plan, run, heed, measuring, ended

    @cached_property
    def lm(self) -> LM:
        """Loaded when there is something to do."""
        lm = reader(self.plan.job)
        jobs = (self.plan.job_of(asked, self.run.folder) for asked in self.plan.saes)
        for text, column in dict.fromkeys((job.text, job.column) for job in jobs):
            held_out(lm, text, "test", 0, column=column).block(0)  # one too short fails now
        return lm

    def steps(self, group: list[Asked]) -> Iterator[Step]:
        """Those of a group's training; in the end each of its SAEs is measured.

        Raises:
            Stopped: if that is asked for.
        """
        while live := self._live(group):
            yield from self._train(live)
            self.heed()
        with reading_once():
            for asked in group:
                self._measure(asked)
                self.heed()

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
        if any(self._run(asked).trained and self._mates(asked) != names_of(live) for asked in live):
            live = [asked for asked in live if not self._run(asked).trained]
        for asked in live:
            if self._mates(asked) not in ([], names_of(live)):
                self._run(asked).discard()
        return live

    def _mates(self, asked: Asked) -> list[str]:
        run = self._run(asked)
        return run.config.get("stream", []) if run.exists else []

    def _train(self, group: list[Asked]) -> Iterator[Step]:
        """One pass over the stream, for all of a group, to its end or to where something else is asked for."""
        jobs = [self.plan.job_of(asked, self.run.folder) for asked in group]
        sites = [Site(job.site) for job in jobs]
        source = stream(jobs[0], self.lm, self.plan.needs, list(dict.fromkeys(sites)))
        saes = [build(job.variant, d_in=source.d_in(job.site), seed=job.seed, **job.own) for job in jobs]
        at: dict[Site, list[SAE]] = {}
        for site, sae in zip(sites, saes):
            at.setdefault(site, []).append(sae.to(self.lm.device))
        try:
            with closing(train(at, source, run=[job.run for job in jobs], config=jobs[0].train)) as steps:
                for step in steps:
                    yield step
                    if self.run.wanted != "run" or self.ended():
                        return
        except Diverged as error:
            return self._give_up([asked for asked, sae in zip(group, saes) if sae in error.saes], error)
        if not all(self._run(asked).trained for asked in group):
            raise Stopped  # by a word to one of the group

    def _give_up(self, lost: list[Asked], error: Diverged) -> None:
        """Marks SAEs as diverged, for good."""
        for asked in lost:
            self._run(asked).mark("failed", error=str(error), diverged=True)
        self.run.append({"step": 0, "note": f"{', '.join(names_of(lost))} left out: {error}"})

    def _measure(self, asked: Asked) -> None:
        run, tokens = self._run(asked), self.plan.job.evaluation
        if run.trained and not run.eval:
            self.measuring()
            found = evaluate(run.sae.to(self.lm.device), self.lm, tokens=tokens, spliced=min(SPLICED, tokens))
            run.write_eval(found.to_json())


def beat(run: Run, step: Step, batch: float) -> None:
    """A sweep's status at a step; `batch`: tokens of one."""
    eta = (step.steps - step.index) * batch / step.rate if step.rate else None
    numbers = {"step": step.index, "steps": step.steps, "tokens": step.tokens, "rate": step.rate, "eta": eta}
    run.beat("running", **numbers)


def heed(run: Run) -> None:
    """Waits while a pause is asked of a sweep; every training has left a checkpoint by now.

    Raises:
        Stopped: if an end is asked for.
    """
    while (wish := run.wanted) != "run":
        if wish != "pause":
            run.control("run")
        if wish == "stop":
            raise Stopped
        if wish == "pause":
            run.mark("paused")
            time.sleep(0.1)


def names_of(saes: Sequence[Asked]) -> list[str]:
    return [asked.name for asked in saes]
