"""An SAE in slices: what one process of a mesh holds of it, and how it becomes whole again."""

from typing import Any

import torch
from torch import nn

from ..saes import REGISTRY, SAE
from ..sparse import Mesh

WHOLE = ("doc", "position", "x", "target", "grad")  # what a batch has for each token


@torch.no_grad()
def scatter(sae: SAE, mesh: Mesh) -> None:
    """Leaves an SAE the latents that are this process's.

    Raises:
        ValueError: a variant that has not been made for it, or latents that cannot be shared out evenly.
    """
    if not sae.in_slices:
        raise ValueError(
            f"{sae.name} is trained on one device: a step of it looks at all latents, or all tokens, at once. Those "
            f"on several: {', '.join(sorted(name for name, made in REGISTRY.items() if made.in_slices))}."
        )
    if sae.cfg.d_sae % mesh.latents:
        raise ValueError(f"d_sae={sae.cfg.d_sae} cannot be shared out among {mesh.latents} devices: take a multiple.")
    for name in sae.per_latent:
        _put(sae, name, getattr(sae, name).chunk(mesh.latents)[mesh.slice].clone())


@torch.no_grad()
def gather(sae: SAE, mesh: Mesh) -> None:
    """Gives an SAE all its latents back, on every process."""
    if len(sae.W_dec) < sae.cfg.d_sae:
        for name in sae.per_latent:
            _put(sae, name, mesh.joined(getattr(sae, name).detach(), "latents"))


def part_of(rows: Any, mesh: Mesh) -> Any:
    """The tokens of a batch that are this process's."""
    mine = mesh.mine(len(rows.x))
    parts = {name: None if getattr(rows, name) is None else getattr(rows, name)[mine] for name in WHOLE}
    return rows._replace(**parts | ({"target": parts["x"]} if rows.target is rows.x else {}))


def _put(sae: SAE, name: str, value: torch.Tensor) -> None:
    if name in sae._parameters:
        sae._parameters[name] = nn.Parameter(value, sae._parameters[name].requires_grad)
    else:
        sae._buffers[name] = value
