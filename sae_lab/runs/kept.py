"""What takes long to compute is kept by what it was computed from, in $SAE_LAB_CACHE or ~/.cache/sae_lab.

A result's folder is named by the sha256 of its tensors and settings; a process of its own makes it, a new interpreter
and no fork, and writes it in one moment.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import read_json, write_json
from .tensors import read_tensors, write_tensors

_children: dict[Path, subprocess.Popen] = {}  # by what they make: each is reaped, and none is started twice


class Kept:
    """A result that is there, or being made by `python -m MODULE FOLDER`."""

    def __init__(self, module: str, tensors: dict[str, Tensor], settings: dict[str, Any]):
        sha = hashlib.sha256(json.dumps([module, settings], sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            sha.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self.folder = _cache() / module.rpartition(".")[2] / sha.hexdigest()[:32]
        self._work: subprocess.Popen | None = None
        self._module, self._tensors, self._settings = module, tensors, settings

    def start(self, **more: Tensor) -> None:
        """Begins to make the result unless it is there, or being made for somebody else in this process.

        The new process is given `more` beside what identifies the result.
        """
        if self.ready:
            return
        self._inside = inside = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        self._work = _children.get(self.folder)
        if self._work is not None and self._work.poll() is None:
            return
        inside.mkdir(parents=True, exist_ok=True)
        write_tensors(inside / "given.safetensors", {**self._tensors, **more})
        write_json(inside / "settings.json", self._settings | {"result": str(self._file)}, durable=False)
        with open(inside / "errors.txt", "wb") as errors:
            command = [sys.executable, "-m", self._module, str(inside)]
            self._work = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        _children[self.folder] = self._work

    @property
    def _file(self) -> Path:
        return self.folder / "result.safetensors"

    @property
    def ready(self) -> bool:
        return self._file.exists()

    def wait(self, timeout: float | None = None) -> dict[str, Tensor]:
        """The result, once it is there.

        Raises:
            TimeoutError: if it takes longer than `timeout` seconds.
            RuntimeError: if the process failed.
        """
        if self._work is not None:
            try:
                self._work.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"Not ready after {timeout:g} s: wait longer, it goes on.") from None
            self._work = None
            if not self.ready:
                errors = self._inside / "errors.txt"
                said = errors.read_text().strip().splitlines()[-1:] if errors.exists() else []  # told to another
                shutil.rmtree(self._inside, ignore_errors=True)
                raise RuntimeError(f"The process that makes it failed: {' '.join(said) or 'it was killed'}.")
        return read_tensors(self._file)


def given(folder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """In the process: (tensors, settings) of the work in a folder."""
    return read_tensors(Path(folder) / "given.safetensors"), read_json(Path(folder) / "settings.json")


def keep(folder: str, **tensors: Tensor) -> None:
    """In the process: puts the result where it is looked for, in one moment, and what was given away."""
    file = Path(given(folder)[1]["result"])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(Path(folder) / file.name, tensors)
    os.replace(Path(folder) / file.name, file)
    shutil.rmtree(folder)


def _cache() -> Path:
    whole = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("SAE_LAB_CACHE", Path(whole) / "sae_lab"))
