"""A saved SAE: config.json (variant, settings, origin) beside weights.safetensors. It eats raw activations."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..saes import SAE, blank, build
from .files import Damaged, read_json, whole_folder, write
from .tensors import read_tensors, write_tensors

FORMAT = "sae_lab/1"


def write_sae(sae: SAE, folder: str | Path, more: dict[str, Any] | None = None) -> Path:
    """The folder, complete or not there at all; an SAE that was there is replaced.

    Its `origin` (model, site, text ... what an evaluation will want to know) is kept with it, and what `more` adds.

    Raises:
        FileExistsError: if the folder holds anything but an SAE, or is a file.
        DiskFull: and the SAE that was there still is.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file. Save the SAE into a folder of its own.")
    other = [p.name for p in folder.glob("*") if p.name not in ("config.json", "weights.safetensors")]
    if other:
        raise FileExistsError(f"{str(folder)!r} also holds {other[0]!r}. Save the SAE into a folder of its own.")
    config = {
        "format": FORMAT,
        "variant": sae.name,
        "config": asdict(sae.cfg),
        "origin": {**sae.origin, **(more or {})},
    }
    with whole_folder(folder) as new:
        config["sha256"] = write_tensors(new / "weights.safetensors", sae.state_dict())
        write(new / "config.json", json.dumps(config, indent=1).encode())
    return folder


def read_sae(folder: str | Path) -> SAE:
    """The SAE of a folder that `write_sae` wrote.

    Raises:
        FileNotFoundError: if the folder holds no SAE.
        Damaged: if a file was cut short or altered, or does not fit its own config.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"No SAE in {str(folder)!r}: there is no config.json. Give a folder that save_sae wrote."
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise Damaged(f"{folder / 'config.json'} does not say format {FORMAT!r}: not an SAE of this package's format.")
    missing = [key for key in ("variant", "config", "sha256", "origin") if key not in config]
    if missing or not isinstance(config["config"], dict):
        raise Damaged(f"{folder / 'config.json'} does not say {(missing or ['config'])[0]!r}: it was altered.")
    tensors = read_tensors(folder / "weights.safetensors", config["sha256"])
    shape = [config["config"].get(key) for key in ("d_sae", "d_in")]
    if "W_enc" not in tensors or list(tensors["W_enc"].shape) != shape:  # before as much memory is asked for
        raise Damaged(f"The weights in {folder} do not fit its config.json, by which W_enc is {shape}.")
    with blank():
        sae = build(config["variant"], **{key: _tuples(value) for key, value in config["config"].items()})
    try:
        sae.load_state_dict(tensors)
    except RuntimeError as error:
        raise Damaged(f"The weights in {folder} do not fit its config.json: {error}") from error
    sae.origin = config["origin"]
    return sae.eval()


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
