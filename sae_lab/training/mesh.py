"""The diary of a training that several processes share: the first one writes, and what it decides all do."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runs import Checkpoint, DiskFull, Run, write_sae
from ..runs.tensors import write_tensors
from ..saes import SAE
from ..sources import Source
from ..sparse import Mesh
from .config import TrainConfig
from .diary import Diary, environment, measured
from .member import Member
from .steps import Step

WISHES = ("run", "pause", "stop", "save")


def shareable(pairs: Sequence[tuple[str, SAE]], config: TrainConfig, mesh: Mesh) -> None:
    """Raises:
    ValueError: for what cannot be trained on a mesh, or on this one.
    """
    if len(pairs) > 1:
        raise ValueError(f"A mesh trains one SAE, not {len(pairs)} at once: give each a training of its own.")
    if config.batch % mesh.data:
        raise ValueError(f"batch={config.batch} cannot be shared out among {mesh.data} devices: take a multiple.")


class Shared(Diary):
    """A `Diary` whose `runs` are the first process's alone; `folders` are known to all."""

    def __init__(self, runs: list[Run], mesh: Mesh):
        super().__init__(runs if mesh.first else [])
        self.mesh, self.folders = mesh, runs
        self.pid = int(os.environ.get("SAE_LAB_PID", 0)) or None  # workers come and go

    def _configs(
        self, members: list[Member], source: Source, described: dict[str, Any], resume: bool
    ) -> list[dict[str, Any]]:
        known = [run.folder / "config.json" for run in self.folders]
        if not self.mesh.told(lambda: bool(known) and all(file.exists() for file in known)):
            for member in members:
                measured(member, source)  # by all: what the processes read in turn they read together
        return self.mesh.told(lambda: super(Shared, self)._configs(members, source, described, resume))

    @property
    def done(self) -> bool:
        return self.mesh.told(lambda: super(Shared, self).done)

    def _newest(self) -> list[Checkpoint]:
        """The first looks which are whole; the others read what it found."""
        mine: list[Checkpoint] = []

        def found() -> int | None:
            mine.extend(super(Shared, self)._newest())
            return mine[0].step if mine else None

        step = self.mesh.told(found)
        return mine if mine or step is None else [run.checkpoints.load(step) for run in self.folders]

    def save(
        self, index: int, members: list[Member], source: Source, state: dict[str, Any], rng: dict, must: bool = False
    ) -> None:
        """Every process of the first part writes its slice; the manifest comes last."""
        if not self.folders or self.saved == index:
            return
        (member,), (folder,) = members, self.folders
        if not self.mesh.first:
            self._write(self._place(None), member)
            failed = self.mesh.told(lambda: None)
        else:
            stream, described = source.state()
            tensors = member.tensors()
            state = state | {"stream": described, "environment": environment(), "slices": self.mesh.latents}
            state["sliced"] = [name for name in tensors if member.is_sliced(name)]
            point = Checkpoint(index, {"stream": stream, "rng": rng}, state)
            failed = self._first(folder, point, member)
        self.saved = self.saved if failed else index
        if failed and must:
            raise DiskFull(*failed)
        if failed and self.mesh.first:
            self.remarks.append(f"no checkpoint at step {index:,}: {failed[1]}")

    def _first(self, run: Run, point: Checkpoint, member: Member) -> tuple[int, str] | None:
        """Writes the checkpoint with the others' help; (errno, words) if a disk was full."""
        asked, failed = False, None

        def slices(folder: Path) -> dict[str, str]:
            nonlocal asked
            asked = True
            return self._write(self._place(str(folder)), member)

        try:
            run.checkpoints.save(point, slices)
            run.checkpoints.prune()
        except DiskFull as full:
            failed = (full.errno, full.strerror)
        if not asked:
            self._write(self._place(None), member)
        return self.mesh.told(lambda: failed)

    def _place(self, folder: str | None) -> str | None:
        return self.mesh.told(lambda: folder)

    def _write(self, folder: str | None, member: Member) -> dict[str, str]:
        """Writes this process's slice; the sha256 of all.

        Raises:
            DiskFull: in the first process, if any found no room.
        """
        said: Any = {}
        if folder and self.mesh.part == 0:
            name = f"sae-{self.mesh.slice}.safetensors"
            try:
                said = {name: write_tensors(Path(folder) / name, member.tensors())}
            except DiskFull as full:
                said = (full.errno, full.strerror)
        every = self.mesh.all_told(said)
        if self.mesh.first and (full := next((one for one in every if isinstance(one, tuple)), None)):
            raise DiskFull(*full)
        return {name: sha for one in every if isinstance(one, dict) for name, sha in one.items()}

    def due(self, index: int, every: int, minutes: float) -> bool:
        if not minutes:
            return super().due(index, every, 0.0)
        return self.mesh.told(lambda: super(Shared, self).due(index, every, minutes))

    def wish(self) -> str:
        return self.mesh.told(lambda: super(Shared, self).wish())

    def snapshot(self, index: int, members: list[Member], rows: dict[str, Tensor]) -> None:
        made = [member.copy(rows[member.site].x) for member in members]
        for run, sae in zip(self.runs, made):
            try:
                write_sae(sae, run.folder / "snapshots" / f"{index:08d}", {"step": index})
            except DiskFull as full:
                self.remarks.append(f"no snapshot at step {index:,}: {full.strerror}")

    def log(self, step: Step, measured: bool) -> None:
        if self.mesh.first:
            super().log(step, measured)
