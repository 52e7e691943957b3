"""What was seen of every latent, kept in its run in arrays that are read a row at a time.

contexts/test/  latents.safetensors  common.safetensors  manifest.json (last: sha256 and bytes of each, and of what)
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import Damaged, read_json, room_for, whole_folder, write
from .run import Run

Files = Mapping[str, Mapping[str, np.ndarray]]  # file name without its ending -> its arrays
KINDS = {"F64": "<f8", "I64": "<i8", "F32": "<f4", "I32": "<i4", "U8": "|u1"}  # safetensors' names for types
PIECE = 2**24  # bytes that are read at a time to check a file


def weights_of(run: Run) -> str:
    """sha256 of the weights of a run's SAE."""
    if not run.trained:
        _ = run.sae  # says what there is instead
    return read_json(run.folder / "sae" / "config.json")["sha256"]


def write_contexts(run: Run, split: str, files: Files, about: dict[str, Any]) -> Path:
    """The folder of a split, complete or as it was before.

    Raises:
        DiskFull: and what was there still is.
    """
    folder = run.folder / "contexts" / split
    about = {"weights": weights_of(run), **about}
    with whole_folder(folder) as new:
        sums = {f"{n}.safetensors": _write_arrays(new / f"{n}.safetensors", a) for n, a in files.items()}
        write(new / "manifest.json", json.dumps({"about": about, "files": sums}, indent=1).encode())
    return folder


def read_contexts(run: Run, split: str, whole: bool = False) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """(the arrays of each file, mapped into memory and not read yet; about). `whole` reads every byte to check it.

    Raises:
        FileNotFoundError: if the run has none of this split; the message says how to make them.
        Damaged: if a file was cut short, or (where `whole`) altered.
    """
    folder = run.folder / "contexts" / split
    if not (folder / "manifest.json").exists():
        raise FileNotFoundError(
            f"No contexts of split {split!r} in {str(run.folder)!r}. Make them: contexts(run, lm, split={split!r}), or "
            f"sae-lab contexts {run.folder} --split {split}."
        )
    manifest = read_json(folder / "manifest.json")
    for name, (sha256, size) in manifest["files"].items():
        path = folder / name
        found = path.stat().st_size if path.exists() else 0
        if found != size or (whole and _sha256(path) != sha256):
            raise Damaged(f"{path} is not the file that was written ({found:,} of {size:,} bytes). Make it again.")
    return {name.removesuffix(".safetensors"): _mapped(folder / name) for name in manifest["files"]}, manifest["about"]


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, int]:
    """(sha256, bytes) of a new safetensors file, written from the arrays themselves: they may be most of the memory."""
    codes, head, end = {kind: code for code, kind in KINDS.items()}, {}, 0
    ordered = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # so that each begins at a multiple of its size
    for name in ordered:
        a = arrays[name]
        head[name] = {"dtype": codes[a.dtype.str], "shape": a.shape, "data_offsets": [end, end + a.nbytes]}
        end += a.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with room_for(path), open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text, *(np.ascontiguousarray(arrays[n]) for n in ordered)):
            data = memoryview(part).cast("B") if len(part) else b""
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), 8 + len(text) + end


def _mapped(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))
    return {
        name: np.memmap(path, KINDS[of["dtype"]], "r", 8 + size + of["data_offsets"][0], tuple(of["shape"]))
        if of["data_offsets"][0] < of["data_offsets"][1]
        else np.zeros(of["shape"], KINDS[of["dtype"]])
        for name, of in head.items()
        if name != "__metadata__"
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(PIECE):
            digest.update(data)
    return digest.hexdigest()
