"""The training loop, as a generator of Steps: whoever consumes them decides what to do with each.

Unusual here:
- several SAEs may share one stream: an optimiser and a run folder each, one summed backward for peers;
- while the generator lives, an SAE eats activations scaled to its recipe; when it ends, however it ends, the scale is
  folded into the weights and the SAE eats raw activations;
- what an SAE draws comes from a generator state of the loop's own: what else the process draws changes nothing.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ..runs import DiskFull
from ..saes import SAE, Batch, Objective
from ..sites import Site
from ..sources import Source
from ..sparse import Mesh
from .config import TrainConfig, configured
from .diary import Diary, folders
from .member import Diverged, Member
from .mesh import Shared, shareable
from .quiet import drawing, own_rng, uninterrupted
from .steps import Record, Step, measure

SAMPLE = 4096  # activations that an SAE sees before its first step, where it asks for some


def train(
    saes: SAE | Sequence[SAE] | Mapping[str, SAE | Sequence[SAE]],
    source: Source,
    tokens: int | None = None,
    *,
    run: str | Path | Sequence[str | Path] | None = None,
    resume: bool = True,
    config: TrainConfig | None = None,
    about: dict[str, Any] | None = None,
    mesh: Mesh | None = None,
    **knobs: Any,
) -> Iterator[Step]:
    """A generator of Steps that trains SAEs in place on the activations of `source`. Stop asking to pause.

    One SAE, several on one site, or {site: one or several}; one that was trained before goes on from its weights. `run`
    names the folder that keeps the record (one each where there are several); a run that was cut short goes on from its
    newest whole checkpoint, to the same bits as if it had not been. Leaving the loop early, Ctrl-C and control("stop")
    all leave a checkpoint. `knobs` are those of TrainConfig; `about` is kept in the run's config.

    On a `mesh` every process calls this alike, with an SAE and a source of its own that are the same everywhere: its
    latents are then in slices and each batch in parts, and it is whole again at the end. The first process writes the
    run. Steps are those of one process but for the rounding of sums.

    Raises:
        ValueError: a knob out of range, a site that the source lacks, a run folder made with another config.
        RunInUse: if another training writes to the folder.
        DiskFull: if the final SAE, or the checkpoint on leaving, finds no room; others are only remarked on.
        Diverged: if a loss is no longer finite; a FloatingPointError that knows whose.
    """
    config = configured(config, **knobs, **({} if tokens is None else {"tokens": tokens}))
    pairs = placed(saes, source)
    if mesh:
        shareable(pairs, config, mesh)
    members = [Member(sae, site, config, mesh) for site, sae in pairs]
    for member in members:
        if "peers" in member.sae.needs:
            member.peers = tuple(m.sae for m in members if m is not member and m.site == member.site)
    diary = Shared(folders(run, members), mesh) if mesh else Diary(folders(run, members))
    described = {"train": asdict(config), "source": source.describe(), "about": about or {}}
    return _Training(members, source, config, diary).run(described, resume)


class _Training:
    """The state of one loop."""

    def __init__(self, members: list[Member], source: Source, config: TrainConfig, diary: Diary):
        self.members, self.source, self.config, self.diary = members, source, config, diary
        self.mesh = members[0].mesh
        self.learning = [member for member in members if member.adam]
        self.steps = config.steps if self.learning else 0
        self.snapshots = {self.steps >> i for i in range(1, config.snapshots + 1)} - {0} if diary.folders else set()
        self.index, self.whole = 0, True  # steps done; False in the middle of one
        self.rows: dict[str, Any] = {}
        self.records: tuple[Record, ...] = ()
        self.measured, self.rate = 0, 0.0
        self.timed, self.spent, self.began = 0, 0.0, time.perf_counter()  # since step `timed`, before `began`
        self.rng = own_rng(config.seed, {member.silent.device for member in members})

    def run(self, described: dict[str, Any], resume: bool) -> Iterator[Step]:
        share = getattr(self.source, "share", None) if self.mesh else None
        try:
            if share:
                share(self.mesh)
            self.diary.open(self.members, self.source, described, resume)
            of = {**described["source"], **described["about"], "tokens": self.config.tokens}
            for member in self.members:
                member.sae.origin = of | {"site": member.site}
            yield from self._already_done() if self.diary.done else self._all_steps()
        except (GeneratorExit, KeyboardInterrupt):
            if not self.diary.done:
                self._leave()
            raise
        except BaseException as error:
            self.diary.beat("failed", self._step(), error=f"{type(error).__name__}: {error}")
            raise
        finally:
            if share:
                share(None)
            for member in self.members if self.diary.opened else ():
                member.release()
            self.diary.close()

    def _all_steps(self) -> Iterator[Step]:
        self.diary.beat("starting", self._step())
        if not self._resume():
            self._prepare()
        while self.index < self.steps:
            if self._stopped():
                return
            with uninterrupted(), self._timed(), self.mesh or nullcontext():
                measured = self._advance()
                self.diary.log(self._step(), measured)
                self._keep()
            if self.index < self.steps:
                yield self.diary.noted(self._step())
        with uninterrupted():
            self._finish()
        yield self.diary.noted(self._step())

    def _advance(self) -> bool:
        """One optimiser step of every SAE; whether it was measured."""
        self.whole = False
        self.rows = self.source.next(self.config.batch)
        measured = (self.index + 1) % self.config.log_every == 0 or self.index + 1 in (1, self.steps)
        active = self.members if measured else self.learning
        with drawing(self.rng):
            batches = [m.batch(self.rows[m.site], self.index / max(1, self.steps - 1)) for m in active]
            outs = self._outs(active, batches)
            for member in active:
                member.synchronise()
            if measured:
                self._measure(batches, outs)
            clippings = self._clippings(active)  # all, before any weight moves
            for member, out, clipping in zip(active, outs, clippings):
                member.update(out, self.index, clipping)
        self.index += 1
        self.whole = True
        return measured

    def _outs(self, members: list[Member], batches: list[Batch]) -> list[Objective]:
        """What every SAE makes of its batch, and the gradients of it all.

        One that has no peers is differentiated at once, while what it made is in the caches; then that is let go.
        """
        outs, shared = [], []
        for member, batch in zip(members, batches):
            outs.append(member.sae.objective(batch))
            terms = [term for term in outs[-1].terms.values() if term.requires_grad]
            if member.peers:
                shared += terms
            elif terms:
                torch.autograd.backward(terms)
        if shared:
            torch.autograd.backward(shared)
        return outs

    def _measure(self, batches: list[Batch], outs: list[Objective]) -> None:
        """Raises:
        Diverged: if a loss is not finite; the weights are still those of before the step.
        """
        self.records = tuple(measure(m, batch, out, self.index) for m, batch, out in zip(self.members, batches, outs))
        terms = [(m.sae, r, *term) for m, r in zip(self.members, self.records) for term in r.terms.items()]
        if lost := [term for term in terms if not math.isfinite(term[-1])]:
            _, record, name, value = lost[0]
            raise Diverged(
                dict.fromkeys(sae for sae, *_ in lost),
                f"Loss term {name!r} of {record.variant} at {record.site} is {value} at step {self.index + 1}. "
                "Lower lr, or look for infinities in the activations; the last checkpoint is intact.",
            )
        now, steps = time.perf_counter(), self.index + 1 - self.timed
        self.rate = steps * self.config.batch / max(self.spent + now - self.began, 1e-9)
        self.measured = self.timed = self.index + 1
        self.spent, self.began = 0.0, now

    def _clippings(self, members: list[Member]) -> list[float]:
        """Raises:
        Diverged: with all whose gradient is not finite.
        """
        found, lost = [], []
        for member in members:
            try:
                found.append(member.clipping(self.index))
            except Diverged as error:
                lost.append(error)
        if lost:
            raise Diverged([sae for error in lost for sae in error.saes], str(lost[0]))
        return found

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts the time of the steps alone, not that of whoever consumes them, nor a pause."""
        self.began = time.perf_counter()
        yield
        self.spent += time.perf_counter() - self.began

    def _keep(self) -> None:
        """A snapshot and a checkpoint, if it is time for them."""
        if self.index in self.snapshots:
            self.diary.snapshot(self.index, self.members, self.rows)
        if self.diary.due(self.index, self.config.checkpoint_steps, self.config.checkpoint_minutes):
            self._save()

    def _save(self, must: bool = False) -> None:
        if self.whole and self.index:
            records = [asdict(record) for record in self.records]
            state = {"index": self.index, "measured": self.measured, "records": records}
            self.diary.save(self.index, self.members, self.source, state, self.rng, must)

    def _leave(self) -> None:
        """Writes a last checkpoint.

        Raises:
            DiskFull: if there is no room for it; the run says so.
        """
        try:
            self._save(must=True)
        except DiskFull as full:
            self.diary.beat("failed", self._step(), error=f"DiskFull: {full.strerror}")
            raise
        self.diary.beat("stopped", self._step())
        for member in self.members:
            member.join()

    def _prepare(self) -> None:
        """Shows a first sample to the fresh SAEs that want one."""
        fresh = [m for m in self.members if not m.trained_before]
        wanting = [m for m in fresh if type(m.sae).prepare is not SAE.prepare or m.sae.starting_l0]
        tokens = self.config.sample or (SAMPLE if wanting else 0)
        sample = self._draw(tokens) if tokens else {}
        with drawing(self.rng), self._alike():
            for member in wanting:
                x, target = (torch.cat(rows) for rows in zip(*((r.x, r.target) for r in sample[member.site])))
                member.sae.prepare(member.scaled(x), member.scaled_target(target))

    def _draw(self, tokens: int) -> dict[str, list[Any]]:
        """Fresh rows of every site, in batches, at least `tokens` of them."""
        draws = [self.source.next(self.config.batch) for _ in range(-(-tokens // self.config.batch))]
        return {site: [rows[site] for rows in draws] for site in {member.site for member in self.members}}

    def _resume(self) -> bool:
        """Whether there was a checkpoint to go on from."""
        state, rng = self.diary.resume(self.members, self.source)
        if state:
            self.index, self.measured = state["index"], state["measured"]
            self.records = tuple(Record(**record) for record in state["records"])
            self.rng |= {name: rng[name] for name in self.rng if name in rng}
            self.timed = self.index
        return bool(state)

    def _stopped(self) -> bool:
        """Does what the control file asks: a checkpoint, a pause, or to end here."""
        paused = False
        while (wish := self.diary.wish()) != "run":
            if wish == "stop":
                self.diary.grant("stop", "run")
                self._leave()
                return True
            self._save()
            paused = paused or wish == "pause"
            if wish == "save":
                self.diary.grant("save", "pause" if paused else "run")
            if paused:
                self.diary.beat("paused", self._step())
                time.sleep(0.1)
        return False

    def _finish(self) -> None:
        """Sets inference thresholds on fresh training rows, folds the scales, writes the SAEs."""
        self.whole = False  # what follows is no state to go on from
        wanting = [m for m in self.members if type(m.sae).calibrate is not SAE.calibrate]
        fresh = self._draw(self.config.calibration_tokens) if wanting or not self.steps else {}
        with drawing(self.rng), self._alike():
            for member in wanting:
                member.sae.calibrate([member.scaled(rows.x) for rows in fresh[member.site]])
        if not self.steps:
            self._look(fresh)
        for member in self.members:
            member.release()
            member.join()
        self.diary.keep(self.members)
        self.diary.beat("done", self._step())

    def _alike(self) -> Any:
        """Where every process is shown the same rows."""
        return self.mesh.alike if self.mesh else nullcontext()

    def _look(self, fresh: dict[str, list[Any]]) -> None:
        """Measures SAEs that take no steps."""
        batches = [member.batch(fresh[member.site][0], 0.0) for member in self.members]
        with torch.no_grad():
            self._measure(batches, [m.sae.objective(batch) for m, batch in zip(self.members, batches)])
        self.measured = 0
        self.diary.log(self._step(), measured=True)

    def _already_done(self) -> Iterator[Step]:
        """The last Step of a finished run, its weights put into the SAEs."""
        for member, run in zip(self.members, self.diary.folders):
            member.join()
            member.sae.load_state_dict(run.sae.state_dict())
            member.folded = True
        logs = [[row for row in run.rows if "fvu" in row] for run in self.diary.folders]
        if all(logs):
            self.index = self.measured = logs[0][-1]["step"]
            self.rate = logs[0][-1]["rate"]
            self.records = tuple(
                Record(**{f.name: log[-1][f.name] for f in fields(Record) if f.name in log[-1]}) for log in logs
            )
        else:
            self.diary.remarks.append("its log is gone")
        self.diary.remarks.append("already trained: weights read from the run")
        self.diary.beat("done", self._step())
        yield self.diary.noted(self._step())

    def _step(self) -> Step:
        tokens = self.index * self.config.batch
        return Step(self.index, self.steps, tokens, self.rate, self.measured, self.records)


def placed(saes: Any, source: Source) -> list[tuple[str, SAE]]:
    """(site, SAE) for each SAE.

    Raises:
        ValueError: if a site is not of the source, or has to be named, or a width does not fit.
    """
    sites = list(source.sites)
    if not isinstance(saes, Mapping):
        if len(sites) != 1:
            raise ValueError(
                f"The source serves {', '.join(sites)}: say which SAE is for which, {{{sites[0]!r}: sae}}."
            )
        saes = {sites[0]: saes}
    pairs = [
        (str(Site(site)), sae) for site, group in saes.items() for sae in ([group] if isinstance(group, SAE) else group)
    ]
    for site, sae in pairs:
        if site not in sites:
            raise ValueError(
                f"The source does not serve site {site!r}, only {', '.join(sites)}. Build it with that site."
            )
        missing = sae.needs - {"peers"} - set(getattr(source, "needs", ()))
        if missing:
            raise ValueError(f"{sae.name} needs {', '.join(missing)}: activations(..., needs={sorted(missing)}).")
        if sae.cfg.transcode != (Site(site).target != site):
            wants = "transcode=True: what it gives is the MLP's output" if not sae.cfg.transcode else "transcode=False"
            raise ValueError(f"{sae.name} at {site} has to be built with {wants}.")
        if sae.cfg.d_in != source.d_in(site):
            raise ValueError(
                f"{sae.name} has d_in={sae.cfg.d_in}, but {site} is {source.d_in(site)} wide: build it so."
            )
    if not pairs or len({id(sae) for _, sae in pairs}) < len(pairs):
        raise ValueError("train() wants at least one SAE, and each one once: build a second one for a second site.")
    return pairs
