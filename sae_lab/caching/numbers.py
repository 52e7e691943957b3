"""In how many bits rows are stored, and what is lost by it."""

import torch
from torch import Tensor

from ..shapes import Rows

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}  # bytes of a number


def packed(x: Rows, dtype: str) -> tuple[dict[str, Tensor], float]:
    """(what is stored of rows, by the ending of its name; how much is lost, relative to their spread about the mean).

    Its square is the FVU of what is stored.

    int8 has a scale per token: its largest coordinate is 127.

    Raises:
        ValueError: for numbers that are not finite, or beyond the reach of float16.
    """
    x = x.float().cpu()
    if not x.isfinite().all():
        raise ValueError(
            "Activations that are not finite: the model overflows. Load it with dtype='bfloat16' or 'float32'."
        )
    if dtype == "int8":
        scale = (x.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        stored = {"": (x / scale).round().to(torch.int8), ".scale": scale[:, 0]}
    else:
        stored = {"": x.to(getattr(torch, dtype))}
    back = unpacked(stored)
    if not back.isfinite().all():
        raise ValueError(f"An activation of {x.abs().max():.3g} is beyond {dtype}: take dtype='bfloat16'.")
    return stored, _lost(x, back)


def _lost(x: Rows, back: Rows) -> float:
    largest = x.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    x, back = x / largest, back.float() / largest  # squares of large numbers overflow
    whole = float((x - x.mean(0)).norm() if len(x) > 1 else x.norm())
    return float((back - x).norm()) / whole if whole else 0.0


def unpacked(stored: dict[str, Tensor]) -> Rows:
    """The rows again: as they are stored, or float32 where a scale is."""
    return stored[""].float() * stored[".scale"][:, None] if ".scale" in stored else stored[""]
