"""What a folder or a file of other tools holds, looked at before it is read: JSON, and tensors by name and shape.

Nothing that can execute is ever loaded: safetensors, plain numpy arrays, and pickles through torch's weights_only door.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..runs import Damaged

ENDINGS = (".safetensors", ".npz", ".pt", ".pth")
CONFIGS = ("config.json", "cfg.json", "hyperparams.json", "lm_config.json", "activation_scaler.json")
PICKLED = ("ae", "sae_weights", "final", "pruned")  # names of the pickles that are opened in a folder of several
BELOW = ("", "checkpoints")  # where in a folder weights are looked for
MOST_JSON = 16 * 2**20  # bytes
DEEP, ENTRIES = 4, 10_000  # of dictionaries in a pickle
FOLDED = 20  # times that an array may be larger than in its archive


class Said(dict):
    """A JSON object that says, where it lacks something, of which file it is."""

    file = ""

    def __missing__(self, key: str) -> Any:
        raise Damaged(f"{self.file} does not say {key!r}, without which its weights have no meaning.")

    def number(self, key: str) -> float:
        """Raises:
        Damaged: if it says none.
        """
        if isinstance(self[key], bool) or not isinstance(self[key], int | float):
            raise Damaged(f"{self.file} says {key}={self[key]!r}, which should be a number.")
        return float(self[key])

    def size(self, key: str) -> int:
        """A whole number above 0.

        Raises:
            Damaged: if it says none.
        """
        found = self.number(key)
        if found < 1 or found != int(found):
            raise Damaged(f"{self.file} says {key}={self[key]!r}, which should be a whole number above 0.")
        return int(found)


class Shape(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


class Stored:
    """A checkpoint: `json` by file name, `files` of tensors by name, nothing read but their headers.

    Attributes:
        latents: those that are wanted, None for all; `rows` and `numbers` give these alone.
        extra: what a pickle holds beside tensors.
    """

    def __init__(self, where: str | Path, latents: Sequence[int] | None = None):
        self.where, self.latents = Path(where), None if latents is None else list(latents)
        self.json: dict[str, Any] = {}
        self.files: dict[str, dict[str, Shape]] = {}
        self.extra: dict[str, Any] = {}
        self._open: dict[str, Any] = {}
        if not self.where.exists():
            raise FileNotFoundError(f"No file or folder {str(where)!r}. Give a run, a folder or a file with an SAE.")
        self.root = self.where if self.where.is_dir() else self.where.parent
        beside = (self.root, self.root.parent) if self.root.name in BELOW else (self.root,)
        for path in (folder / name for folder in beside for name in CONFIGS if (folder / name).exists()):
            self.json.setdefault(path.name, _json(path))
        found = [p for below in BELOW for p in sorted((self.root / below).glob("*")) if p.suffix in ENDINGS]
        for path in found if self.where.is_dir() else [self.where]:
            name = str(path.relative_to(self.root))
            self._open[name] = path
            if path.suffix not in (".pt", ".pth") or not self.where.is_dir() or len(found) == 1 or path.stem in PICKLED:
                self.files[name] = self._look(name)

    def pick(self, *needed: str, without: Sequence[str] = ()) -> str | None:
        """The file that has all of these tensors and none of those; None where there is no such file."""
        for name, tensors in self.files.items():
            if all(n in tensors for n in needed) and not any(n in tensors for n in without):
                return name
        return None

    def whole(self, file: str, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self._part(file, name, None)

    def rows(self, file: str, name: str, *, transposed: bool = False) -> Tensor:
        """A matrix with a row per latent, contiguous; `transposed`: it is stored with a column per latent."""
        if self.latents is None:
            found = self.whole(file, name)
            return found.T.contiguous() if transposed else found
        part = self._part(file, name, 1 if transposed else 0)
        return part.T.contiguous() if transposed else part

    def numbers(self, file: str, name: str) -> Tensor:
        """A vector with a number per latent."""
        return self.whole(file, name) if self.latents is None else self._part(file, name, 0)

    def shape(self, file: str, name: str) -> tuple[int, ...]:
        return self.files[file][name].shape

    def demand(self, file: str, name: str, shape: tuple[int, ...]) -> None:
        """Raises:
        Damaged: if the tensor is of another shape than its file's config and its companions say.
        """
        found = self.shape(file, name)
        if found != shape:
            raise Damaged(
                f"{self.root / file}: {name} is {list(found)}, and by the rest of the checkpoint should be "
                f"{list(shape)}. The file and its config do not belong together."
            )

    def _within(self, d_sae: int) -> None:
        wrong = [latent for latent in self.latents or () if not 0 <= latent < d_sae]
        if wrong:
            raise IndexError(f"{str(self.where)!r} has no latent {wrong[0]}: it has 0 to {d_sae - 1}.")

    def _look(self, name: str) -> dict[str, Shape]:
        """Opens a file; its tensors' shapes."""
        path = self._open[name]
        try:
            if path.suffix == ".safetensors":
                self._open[name] = file = safe_open(path, "pt")
                parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                return {key: Shape(tuple(p.get_shape()), p.get_dtype()) for key, p in parts.items()}
            if path.suffix == ".npz":
                return self._look_npz(name, path)
            self._open[name] = tensors = self._unpickle(path)
            return {key: Shape(tuple(t.shape), str(t.dtype)) for key, t in tensors.items()}
        except (
            SafetensorError,
            zipfile.BadZipFile,
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            RuntimeError,
        ) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(f"{path} cannot be read as {path.suffix[1:]}: {_short(error)}. Copy it again.") from error

    def _look_npz(self, name: str, path: Path) -> dict[str, Shape]:
        found = {}
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                packed = info.file_size > FOLDED * max(1, info.compress_size)
                if packed or dtype.hasobject or info.file_size > np.prod(shape, dtype=float) * dtype.itemsize + 2**16:
                    raise Damaged(f"{path}: {info.filename} is no plain array of numbers. Nothing of it was loaded.")
                found[info.filename.removesuffix(".npy")] = Shape(tuple(shape), str(dtype))
        self._open[name] = np.load(path, allow_pickle=False)
        return found

    def _unpickle(self, path: Path) -> dict[str, Tensor]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle's versions
                found = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise Damaged(
                f"{path} is a pickle with more than tensors in it, which could run code: it was not loaded "
                f"({_short(error)}). Ask its author for safetensors."
            ) from error
        tensors: dict[str, Tensor] = {}
        self._flatten(found, "", tensors, path, 0)
        wrapped = tensors and all(name.startswith("sae.") for name in tensors)  # as llamascopium's are
        return {name.removeprefix("sae."): t for name, t in tensors.items()} if wrapped else tensors

    def _flatten(self, found: Any, prefix: str, tensors: dict[str, Tensor], path: Path, depth: int) -> None:
        if isinstance(found, Tensor):
            if found.layout != torch.strided or found.numel() * found.element_size() > found.untyped_storage().nbytes():
                raise Damaged(f"{path}: {prefix} is larger than what the file holds of it. Nothing of it was used.")
            tensors[prefix] = found.detach()
        elif isinstance(found, dict) and (depth > DEEP or len(tensors) + len(self.extra) > ENTRIES):
            raise Damaged(f"{path}: dictionaries in dictionaries, {depth} deep or too many. No SAE is kept like that.")
        elif isinstance(found, dict):
            for key, value in found.items():
                self._flatten(value, f"{prefix}.{key}" if prefix else str(key), tensors, path, depth + 1)
        else:
            self.extra[prefix] = found

    def _part(self, file: str, name: str, axis: int | None) -> Tensor:
        stored, some = self._open[file], self.latents
        if axis is not None:
            self._within(self.shape(file, name)[axis])
        if isinstance(stored, dict):
            tensor = stored[name]
            return tensor if axis is None else tensor.index_select(axis, torch.tensor(some))
        if isinstance(stored, np.lib.npyio.NpzFile):
            tensor = torch.from_numpy(stored[name])
            return tensor if axis is None else tensor.index_select(axis, torch.tensor(some))
        if axis is None:
            return stored.get_tensor(name)
        part = stored.get_slice(name)
        if axis == 0:
            return torch.cat([part[i : i + 1] for i in some])
        return torch.cat([part[:, i : i + 1] for i in some], 1)


def below(name: str, said: str) -> str:
    """A path as a hub writes it; "" for its root.

    Raises:
        ValueError: if it is not below.
    """
    if "\\" in said or ".." in PurePosixPath(said).parts or PureWindowsPath(said).anchor or PureWindowsPath(said).drive:
        raise ValueError(
            f"{name}={said!r} climbs out of where it is looked for. Give a name below, such as 'layers/12'."
        )
    return str(PurePosixPath(said)) if PurePosixPath(said).parts else ""


def within(root: Path, inside: str) -> Path:
    """A folder or file below `root`.

    Raises:
        ValueError: if it is not below.
        FileNotFoundError: if it is not there; the message says what is.
    """
    path = root / below("inside", inside)
    if not path.exists():
        there = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else []
        raise FileNotFoundError(f"No {inside!r} in {str(root)!r}. It has: {', '.join(there) or 'nothing'}.")
    return path


def _json(path: Path) -> Any:
    found = _parsed(path)
    if isinstance(found, dict):
        found = Said(found)
        found.file = str(path)
    return found


def _parsed(path: Path) -> Any:
    if not path.is_file():
        raise Damaged(f"{path} is no file of its own, such as a config is. It was not read.")
    with open(path, "rb") as file:
        data = file.read(MOST_JSON + 1)
    if len(data) > MOST_JSON:
        raise Damaged(f"{path} has more than {MOST_JSON / 1e6:,.0f} MB: too much for a config. It was not read.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not readable as JSON ({_short(error)}): it was cut short or altered.") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
