"""Other tools' weights, read exactly and written so that those tools read them: one file per format.

A format is recognised by what a checkpoint holds, never by a name alone. To read is to bring it to SAEs of raw
activations, with every convention that was applied in words (`sae.origin["conventions"]`).
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError

from ..runs import Damaged
from ..runs.files import whole_folder
from ..saes import SAE
from . import dictionary_learning, gemma_scope, goodfire, llama_scope, llamascopium, openai, saelens, sparsify
from .form import Form
from .mistakes import MISTAKES
from .saebench import for_saebench
from .sanity import odd
from .stored import Stored, within

OURS = {"cfg.json", "config.json", "hyperparams.json", "sae_weights.safetensors", "sae.safetensors", "ae.pt"}
OURS |= {"params.npz", "params.safetensors", "final.safetensors"}  # what `write` writes
WRONG = (TypeError, AttributeError, KeyError, OverflowError, ZeroDivisionError, RuntimeError)
WRONG += (SafetensorError, BadZipFile, zlib.error)
_READ = (llama_scope, llamascopium, saelens, sparsify, dictionary_learning, gemma_scope, openai, goodfire)
FORMATS: dict[str, ModuleType] = {module.NAME: module for module in _READ}
WRITES = tuple(name for name, module in FORMATS.items() if hasattr(module, "write"))


def recognise(stored: Stored) -> tuple[str, str]:
    """(format, file of weights) of a checkpoint.

    Raises:
        ValueError: if it is of none of the formats, or of several.
    """
    found = [(name, file) for name, module in FORMATS.items() if (file := module.recognises(stored)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{str(stored.where)!r} could be {' or '.join(name for name, _ in found)}: one folder, one SAE."
        )
    raise ValueError(
        f"{str(stored.where)!r} holds no SAE of a known format ({', '.join(FORMATS)}). {_seen(stored)} "
        "A format is told by its config beside its weights: keep them together."
    )


def read(
    where: str | Path,
    *,
    latents: Sequence[int] | None = None,
    norm: dict[str, float] | None = None,
    name: str | None = None,
) -> Form:
    """What a folder or a file of another tool holds, ready for raw activations.

    Args:
        latents: read these alone, from wherever they lie in the file.
        norm: mean norm of the activations it was trained on, {"in": .., "out": ..}, where the checkpoint does not say.
        name: of the format, where it is not to be recognised.

    Raises:
        Damaged: files that lie, are cut short, or hold more than numbers.
        ValueError: no known format, or something that none of our SAEs can say.
    """
    stored = Stored(where, latents)
    if norm is not None:
        if not isinstance(norm, dict) or "in" not in norm:
            raise TypeError(
                f'norm={norm!r} must say {{"in": .., "out": ..}}: mean norms of what is read and what is written.'
            )
        for said in stored.json.values():
            if isinstance(said, dict) and not said.get("dataset_average_activation_norm"):
                said["dataset_average_activation_norm"] = {"in": norm["in"], "out": norm.get("out", norm["in"])}
    chosen, file = recognise(stored) if name is None else (name, FORMATS[name].recognises(stored))
    if file is None:
        raise ValueError(f"{str(where)!r} is not of format {name!r}. {_seen(stored)}")
    try:
        form = FORMATS[chosen].read(stored, file)
    except WRONG as error:
        said = ", ".join(stored.json) or "no config"
        raise Damaged(
            f"{stored.root}: what {said} says cannot be ({error}). It was altered, or of another tool."
        ) from error
    return replace(form, origin=form.origin | {"format": chosen})


def write(sae: SAE | Form, folder: str | Path, format: str, dtype: Any = torch.float32) -> Path:
    """Writes an SAE of raw activations in another tool's format.

    Raises:
        ValueError: no such format, or one that cannot say what this SAE does; the message says what.
        FileExistsError: if the folder holds anything but an SAE, which is replaced.
    """
    if format not in WRITES:
        raise ValueError(f"No format {format!r} to write. Known: {', '.join(WRITES)}, and sae_lab.")
    folder = Path(folder)
    other = [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_file() and p.name not in OURS]
    if other:
        raise FileExistsError(
            f"{str(folder)!r} holds more than an SAE: {other[0].name}. Save into a folder of its own."
        )
    form = sae if isinstance(sae, Form) else Form.of(sae)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with whole_folder(folder) as new:
        FORMATS[format].write(form, new, dtype)
    return folder


def _seen(stored: Stored) -> str:
    tensors = [f"{file}: {', '.join(sorted(names)[:6])}" for file, names in stored.files.items()]
    return f"It has {'; '.join(tensors) or 'no weights'}, and {', '.join(stored.json) or 'no JSON'}."
