"""Named tensors in one safetensors file: nothing executes when it is read, and a file cut short says so."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .files import Damaged, write


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """The sha256 of the new file `path`."""
    return write(path, save({name: _plain(t) for name, t in tensors.items()}))


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file on the CPU, in memory of their own.

    Raises:
        Damaged: if the file was cut short, altered (where its `sha256` is known), or is no safetensors file.
    """
    data = path.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise Damaged(f"{path} is not the file that was written ({_extent(data)}): its sha256 differs.")
    try:
        return load(data)
    except SafetensorError as error:
        raise Damaged(
            f"{path} is not a whole safetensors file ({_extent(data)}): {error}. Copy it again, or use an earlier one."
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous, on the CPU, in memory that no other tensor uses."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _extent(data: bytes) -> str:
    """How much of the file is there, as far as its header tells."""
    head = int.from_bytes(data[:8], "little")
    try:
        ends = [v["data_offsets"][1] for k, v in json.loads(data[8 : 8 + head]).items() if k != "__metadata__"]
        return f"{len(data):,} of {8 + head + max(ends, default=0):,} bytes"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{len(data):,} bytes, no readable header"
