"""Inference thresholds that variants share."""

from collections.abc import Iterable

import torch

from ..shapes import Scalar, Values
from ..sparse import PreActs, batch_topk


@torch.no_grad()
def batch_threshold(pres: Iterable[PreActs], k: float | int) -> float:
    """The number that k pre-activations per token exceed, on average over all batches given.

    Only a batch's 4k per token largest are looked at, so a batch that would take more than four times its share counts
    as taking that.
    """
    values, tok = [], 0
    for pre in pres:
        values.append(pre.values(pre.choose(batch_topk, int(4 * k * pre.tok))))
        tok += pre.tok
    if not tok:
        raise ValueError("calibrate() got no activations: give it fresh training rows.")
    value, n = torch.cat(values).relu().sort(descending=True).values, round(k * tok)
    if n >= len(value):
        return 0.0
    return ((value[n - 1] + value[n]) / 2).item()


@torch.no_grad()
def follow(threshold: Scalar, chosen: Values, momentum: float) -> None:
    """Moves a threshold that stands in until calibration towards the least of what a batch chose."""
    if len(chosen):
        least = chosen.min()
        threshold.copy_(least if threshold == 0 else threshold.lerp(least, 1 - momentum))
