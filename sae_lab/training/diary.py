"""A training's dealings with its run folders: locks, config, checkpoints of all SAEs at the same step, log, wishes."""

import platform
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runs import Checkpoint, Damaged, DiskFull, Run, write_sae
from ..sites import Site
from ..sources import Source
from .member import Member
from .steps import Step

HEARTBEAT = 0.5  # seconds


class Diary:
    """The run folders of the SAEs that share one stream; the first also holds the stream's state. Empty: no disk."""

    def __init__(self, runs: list[Run]):
        self.runs = self.folders = runs
        self.opened, self.pid = False, None  # whose process is said to be at work; None: this one
        self.saved = -1
        self.last_save = time.monotonic()
        self.beaten = 0.0
        self.remarks: list[str] = []

    def open(self, members: list[Member], source: Source, described: dict[str, Any], resume: bool) -> None:
        """Takes the locks and writes the configs, or checks them against those of the run that is there.

        Raises:
            RunInUse: if another training writes there.
            ValueError: if there is a run of another config.
        """
        configs = self._configs(members, source, described, resume)
        for member, config in zip(members, configs):
            member.begin(config["scale"], config.get("target_scale", config["scale"]))
            member.choose_in(config["choose_in"])
        self.opened = True

    def _configs(
        self, members: list[Member], source: Source, described: dict[str, Any], resume: bool
    ) -> list[dict[str, Any]]:
        for run in self.runs:
            run.acquire()
            if not resume and (run.folder / "config.json").exists():
                raise ValueError(
                    f"There is a run in {str(run.folder)!r} already, and resume=False would write over it. "
                    "Choose another folder (sae_lab.runs.fresh gives one), or delete this one."
                )
        names, configs = [run.name for run in self.runs], []
        for i, member in enumerate(members):
            measure = partial(measured, member, source)
            if self.runs:
                run = self.runs[i]
                if run.status["state"] in ("stopped", "failed", "lost"):
                    run.control("run")  # a wish of the time before
                config = run.describe(described | about(member) | {"stream": names}, measure)
            else:
                config = measure()
            configs.append(config)
        return configs

    def close(self) -> None:
        for run in self.runs:
            run.release()

    @property
    def done(self) -> bool:
        """Whether the final SAEs are all there."""
        return bool(self.runs) and all(run.trained for run in self.runs)

    def resume(self, members: list[Member], source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(state, generators) of the newest step at which every run has a whole checkpoint, the rest put back.

        ({}, {}) if there is none.

        A damaged checkpoint is set aside under another name, and `remarks` says so.
        """
        points = self._newest()
        if not points:
            return {}, {}
        for member, point in zip(members, points):
            member.restore(whole(point))
        state, step = points[0].state, points[0].step
        source.restore(points[0].files["stream"], state["stream"])
        self.saved = step
        for run in self.runs:
            run.rewind(step)
        was, now = state["environment"], environment()
        changed = [f"{key} was {was[key]!r}, is {now[key]!r}" for key in was if was[key] != now.get(key)]
        self.remarks.append(
            f"resumed at step {step:,}" + (f"; bits may differ: {'; '.join(changed)}" if changed else "")
        )
        return state, points[0].files["rng"]

    def _newest(self) -> list[Checkpoint]:
        """Those of the newest step at which every run has a whole one."""
        while self.runs:
            common = set.intersection(*(set(run.checkpoints.steps) for run in self.runs))
            if not common:
                self._start_over()
                break
            points = [self._load(run, max(common)) for run in self.runs]
            if None not in points:
                return points
        return []

    def save(
        self, index: int, members: list[Member], source: Source, state: dict[str, Any], rng: dict, must: bool = False
    ) -> None:
        """Checkpoints every SAE at this step, then drops the oldest. A full disk is remarked on, and nothing lost.

        Raises:
            DiskFull: if the checkpoint `must` be, and there is no room for it.
        """
        if not self.runs or self.saved == index:
            return
        stream, described = source.state()
        state = state | {"stream": described, "environment": environment()}
        self.last_save = time.monotonic()
        try:
            for i, (run, member) in enumerate(zip(self.runs, members)):
                files = {"sae": member.tensors()} | ({} if i else {"stream": stream, "rng": rng})
                run.checkpoints.save(Checkpoint(index, files, state))
            for run in self.runs:
                run.checkpoints.prune()
            self.saved = index
        except DiskFull as full:
            if must:
                raise
            self.remarks.append(f"no checkpoint at step {index:,}: {full.strerror}")

    def due(self, index: int, every: int, minutes: float) -> bool:
        """Whether a checkpoint is to be written after step `index`."""
        late = minutes and time.monotonic() - self.last_save > 60 * minutes
        return bool(late) or bool(every and index % every == 0)

    def log(self, step: Step, measured: bool) -> None:
        """Logs a measured step, and keeps the heart beating."""
        try:
            for i, run in enumerate(self.runs if measured else ()):
                run.append(step.row(i))
            if measured or time.monotonic() - self.beaten > HEARTBEAT:
                self.beat("running", step)
        except DiskFull as full:
            self.remarks.append(f"log not written: {full.strerror}")

    def noted(self, step: Step) -> Step:
        """The step with what there is to say about it, which the log keeps too."""
        if not self.remarks:
            return step
        note, self.remarks = "; ".join(self.remarks), []
        try:
            for run in self.runs:
                run.append({"step": step.index, "note": note})
        except DiskFull as full:
            note += f"; log not written: {full.strerror}"
        return replace(step, note=note)

    def beat(self, state: str, step: Step, **more: Any) -> None:
        """Writes where it stands; only into folders that are ours."""
        if not self.opened:
            return
        self.beaten = time.monotonic()
        left = (step.steps - step.index) * step.tokens / max(1, step.index)
        eta = left / step.rate if step.rate else None
        numbers = {"step": step.index, "steps": step.steps, "tokens": step.tokens, "rate": step.rate, "eta": eta}
        try:
            for run in self.runs:
                run.beat(state, self.pid, **numbers, **more)
        except DiskFull as full:
            self.remarks.append(f"status not written: {full.strerror}")

    def wish(self) -> str:
        """What is asked of this training, in any of its folders."""
        return next((want for run in self.runs if (want := run.wanted) != "run"), "run")

    def grant(self, wish: str, then: str) -> None:
        """Marks this wish as heard; one that came since stays."""
        for run in self.runs:
            if run.wanted == wish:
                run.control(then)

    def snapshot(self, index: int, members: list[Member], rows: dict[str, Any]) -> None:
        """Keeps the weights alone; thresholds are those of this batch."""
        for run, member in zip(self.runs, members):
            folder = run.folder / "snapshots" / f"{index:08d}"
            try:
                write_sae(member.copy(rows[member.site].x), folder, {"step": index})
            except DiskFull as full:
                self.remarks.append(f"no snapshot at step {index:,}: {full.strerror}")

    def keep(self, members: list[Member]) -> None:
        """Writes the final SAEs."""
        for run, member in zip(self.runs, members):
            write_sae(member.sae, run.folder / "sae")

    def _load(self, run: Run, step: int) -> Checkpoint | None:
        try:
            return run.checkpoints.load(step)
        except Damaged as damage:
            bad = run.checkpoints.set_aside(step)
            self.remarks.append(f"checkpoint {step:,} was damaged ({damage}) and set aside as {bad.name}")
            return None

    def _start_over(self) -> None:
        for run in self.runs:
            run.rewind(-1)
        if self.remarks:
            self.remarks.append("no earlier checkpoint was whole: starting over")


def whole(point: Checkpoint) -> dict[str, Tensor]:
    """The tensors of one SAE; slices that several processes wrote are put together."""
    if "sae" in point.files:
        return point.files["sae"]
    slices = [point.files[f"sae-{i}"] for i in range(point.state["slices"])]
    return {n: torch.cat([s[n] for s in slices]) if n in point.state["sliced"] else t for n, t in slices[0].items()}


def about(member: Member) -> dict[str, Any]:
    """Which SAE this is, of which site."""
    return {"variant": member.sae.name, "sae": asdict(member.asked), "site": member.site, "lr": member.peak}


def measured(member: Member, source: Source) -> dict[str, Any]:
    """What a run measures once, and holds to the end."""
    dtype = str(member.sae.choose_in).removeprefix("torch.")
    scale = member.measured_scale(source, member.site)
    target = Site(member.site).target
    other = {} if target == member.site else {"target_scale": member.measured_scale(source, target)}
    return {"scale": scale, **other, "choose_in": dtype, "environment": environment()}


def environment() -> dict[str, Any]:
    """What bit-identity also hangs on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "host": platform.node(),
    }


def folders(run: Any, members: list[Member]) -> list[Run]:
    """One run folder per SAE: `run` itself for a single one, else a list as given, or subfolders named after the SAEs.

    Raises:
        ValueError: if a list has another length.
    """
    if run is None:
        return []
    if not isinstance(run, str | Path):
        paths = list(run)
        if len(paths) != len(members):
            raise ValueError(f"run= lists {len(paths)} folders for {len(members)} SAEs: give one each, or one for all.")
        return [Run(path) for path in paths]
    if len(members) == 1:
        return [Run(run)]
    return [Run(Path(run) / f"{i}-{m.site}-{m.sae.name}") for i, m in enumerate(members)]
