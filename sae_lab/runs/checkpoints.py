"""Checkpoints that a kill cannot spoil: written in a hidden folder, sha256 of each file in a manifest, one rename.

checkpoints/00000120/  stream.safetensors  sae.safetensors  state.json  manifest.json (last)
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .files import Damaged, read_json, read_whole, sync_folder, whole_folder, write
from .tensors import read_tensors, write_tensors

Files = Mapping[str, dict[str, Tensor]]  # file name without its ending -> its tensors


class Checkpoint(NamedTuple):
    """What a training needs to go on at `step` as if it had never stopped."""

    step: int
    files: Files
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. Only the holder of the run's lock may call what writes."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, newest first, unchecked."""
        return sorted((int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit()), reverse=True)

    def save(self, point: Checkpoint, more: Callable[[Path], dict[str, str]] | None = None) -> None:
        """Writes a checkpoint; `more` writes further files into its folder, and says their sha256.

        Raises:
            DiskFull: and nothing has changed.
        """
        with whole_folder(self._at(point.step)) as new:
            sums = {f"{n}.safetensors": write_tensors(new / f"{n}.safetensors", t) for n, t in point.files.items()}
            sums |= more(new) if more else {}
            sums["state.json"] = write(new / "state.json", json.dumps(point.state, indent=1).encode())
            write(new / "manifest.json", json.dumps({"step": point.step, "sha256": sums}, indent=1).encode())

    def sums(self, step: int) -> dict[str, str]:
        """sha256 of each file, as the manifest has it."""
        return read_json(self._at(step) / "manifest.json")["sha256"]

    def load(self, step: int) -> Checkpoint:
        """Raises:
        Damaged: if a file is missing, cut short or altered.
        """
        folder = self._at(step)
        try:
            sums = self.sums(step)
            state = json.loads(read_whole(folder / "state.json", sums["state.json"]))
            files = {
                name.removesuffix(".safetensors"): read_tensors(folder / name, sums[name])
                for name in sums
                if name.endswith(".safetensors")
            }
            return Checkpoint(step, files, state)
        except (FileNotFoundError, KeyError, TypeError) as error:
            raise Damaged(f"Checkpoint {folder} is not whole: {error!r}.") from error

    def set_aside(self, step: int) -> Path:
        """The new name of a damaged checkpoint, which is kept for whoever wants to look."""
        bad = self.folder / f".bad-{step:08d}-{time.time_ns()}"
        os.rename(self._at(step), bad)
        sync_folder(self.folder)
        return bad

    def prune(self, keep: int = 2) -> None:
        """Leaves the newest `keep`, and nothing that a kill left half-written."""
        gone = [self._at(step) for step in self.steps[keep:]]
        for folder in [*gone, *self.folder.glob(".tmp-*"), *self.folder.glob(".old-*")]:
            shutil.rmtree(folder)

    def _at(self, step: int) -> Path:
        return self.folder / f"{step:08d}"
