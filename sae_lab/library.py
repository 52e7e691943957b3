"""SAEs on a shelf: take one down by run or folder, put one up."""

from pathlib import Path

import torch

from .runs import Run, read_sae, write_sae
from .saes import SAE


def load_sae(where: str | Path | Run, device: str | torch.device = "cpu") -> SAE:
    """The SAE of a run (its folder or `Run`), or of a folder that `save_sae` wrote; it eats raw activations.

    Measuring works with the SAE on another device than the model, and is slower so.

    Raises:
        FileNotFoundError: if there is none, or the run has not finished; the message says where it stands.
        Damaged: if a file was cut short or altered.
    """
    run = where if isinstance(where, Run) else Run(where)
    if (run.folder / "weights.safetensors").exists():
        return read_sae(run.folder).to(device)
    if run.exists:
        return run.sae.to(device)
    raise FileNotFoundError(
        f"No SAE and no run in {str(run.folder)!r}. Give a folder that train(run=...) or save_sae wrote."
    )


def save_sae(sae: SAE, folder: str | Path) -> Path:
    """Writes an SAE of raw activations into a folder of its own: config.json and weights.safetensors.

    Raises:
        FileExistsError: if the folder holds anything but an SAE.
        DiskFull: and an SAE that was there still is.
    """
    return write_sae(sae, folder)
