"""What writers share: tensors in a chosen precision, JSON, and nothing half-written."""

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from .. import runs
from ..runs.files import write


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_json(path, value)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], dtype: torch.dtype, metadata: dict[str, str] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, save(_ready(tensors, dtype), metadata))


def write_pickle(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """A state_dict as torch saves it: tensors alone, so that weights_only=True reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    torch.save(_ready(tensors, dtype), data)
    write(path, data.getvalue())


def write_arrays(path: Path, tensors: dict[str, Tensor]) -> None:
    """An uncompressed .npz in float32."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    np.savez(data, **{name: t.float().numpy() for name, t in _ready(tensors, torch.float32).items()})
    write(path, data.getvalue())


def _ready(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """On the CPU, contiguous, floats in `dtype`, each in memory of its own."""
    return {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype, copy=True).contiguous()
        for name, t in tensors.items()
    }
