"""SAEs on a shelf: take one down by run, folder, file or hub name, put one up, in our format or another tool's."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import pretrained
from .citing import cite
from .pretrained import Form
from .pretrained.form import some
from .runs import Run, read_sae, write_sae
from .saes import SAE


def load_sae(
    where: str | Path | Run,
    inside: str = "",
    *,
    device: str | torch.device = "cpu",
    norm: dict[str, float] | None = None,
    revision: str | None = None,
) -> SAE:
    """The SAE of a run, of a folder or a file in any format of `pretrained.FORMATS`, or of the Hugging Face hub.

    It eats raw activations: what the checkpoint scales, folds or subtracts is in `sae.origin["conventions"]`. Weights
    are looked at as they are loaded, and a `UserWarning` says what is odd; `verify` asks a model.

    Measuring works with the SAE on another device than the model, and is slower so.

    Args:
        inside: which of a repository's or a folder's SAEs: a folder, a file, or a site of Llama Scope such as "L15R".
        norm: mean norm of the activations, {"in": .., "out": ..}, for checkpoints of scaled ones that do not say it.
        revision: of the hub's repository.

    Raises:
        FileNotFoundError: if there is none, the run has not finished, or the hub cannot be reached; the message says
            where it stands, or which files to place where.
        ValueError: a format that is not known, or an SAE that is none of ours.
        Damaged: if a file was cut short or altered, holds more than numbers, or lies about them.
    """
    run = where if isinstance(where, Run) else Run(where)
    if not inside and _is_run(run):
        return run.sae.to(device)
    place = _place(where, inside, revision)
    if (place / "weights.safetensors").exists():
        return read_sae(place).to(device)
    form = pretrained.read(place, norm=norm)
    for remark in pretrained.odd(form):
        warnings.warn(remark, stacklevel=2)
    return form.sae().to(device)


def load_latents(
    where: str | Path, latents: Sequence[int], inside: str = "", *, norm: dict[str, float] | None = None
) -> Form:
    """The rows of some latents alone (`W_enc`, `W_dec`, `b_enc`, `threshold`), scaled and folded as `load_sae`
    would; of another tool's safetensors file the rest is not read.

    Raises:
        IndexError: a latent that the SAE does not have.
        FileNotFoundError, ValueError, Damaged: as `load_sae`.
    """
    place = _place(where, inside, None)
    own = place / "sae" if _is_run(Run(place)) else place
    if (own / "weights.safetensors").exists():
        return some(Form.of(read_sae(own)), latents)
    return pretrained.read(place, latents=latents, norm=norm)


def save_sae(sae: SAE, folder: str | Path, format: str = "sae_lab", dtype: Any = torch.float32) -> Path:
    """Writes an SAE of raw activations into a folder of its own, in our format or one of `pretrained.WRITES`.

    Raises:
        ValueError: no such format, or one that cannot say what this SAE does; another dtype than float32 for ours.
        FileExistsError: if the folder holds anything but an SAE, which is replaced.
        DiskFull: and an SAE that was there still is.
    """
    if format == "sae_lab":
        if dtype not in (torch.float32, "float32"):
            raise ValueError(f"dtype={str(dtype)!r}: our own format keeps the bits that were trained. Leave dtype out.")
        return write_sae(sae, folder)
    return pretrained.write(sae, folder, format, dtype)


def push(
    sae: SAE | str | Path | Run,
    repo: str,
    *,
    format: str = "saelens",
    private: bool = False,
    dtype: Any = torch.float32,
) -> str:
    """Puts an SAE on the Hugging Face hub, with a card of what it is, how to load it, and what was measured of it.

    Given a run, the card has its training, its evaluation and what to cite. The token comes from the environment
    (HF_TOKEN) or from huggingface_hub's own login.

    Returns:
        The address.

    Raises:
        ValueError: as `save_sae`.
        PermissionError, ConnectionError, FileExistsError: no token, no answer, or another model is there already.
    """
    from .pretrained import hub

    if isinstance(sae, SAE):
        return hub.push(sae, repo, format=format, private=private, dtype=dtype)
    run = sae if isinstance(sae, Run) else Run(sae)
    if not _is_run(run):
        return hub.push(load_sae(sae), repo, format=format, private=private, dtype=dtype)
    about = {"run": run, "citation": repr(cite(run))}
    return hub.push(run.sae, repo, format=format, private=private, dtype=dtype, **about)


def _is_run(run: Run) -> bool:
    """Other tools have a config.json as well."""
    if any((run.folder / name).exists() for name in ("job.json", "status.json", "sae/config.json")):
        return True
    return run.exists and isinstance(run.config, dict) and "train" in run.config


def _place(where: str | Path | Run, inside: str, revision: str | None) -> Path:
    """The local folder or file."""
    path = where.folder if isinstance(where, Run) else Path(where)
    if path.exists():
        return pretrained.within(path, inside)
    from .pretrained import hub  # its library takes a while

    if hub.is_hub_name(str(where)):
        return hub.fetch(str(where), inside, revision)
    raise FileNotFoundError(
        f"No SAE and no run in {str(path)!r}. Give a folder that train(run=...) or save_sae wrote, another tool's "
        'folder or file, or a name on the hub: load_sae("fnlp/Llama3_1-8B-Base-LXR-8x", "L15R").'
    )
