"""Gemma Scope 1 (params.npz, no config) and 2 (params.safetensors beside config.json): JumpReLU on raw activations.

Lieberum et al. 2024, arXiv:2408.05147. b_dec is never subtracted before the encoder, and the scale of the training is
folded into the weights. What the first release does not say (model, site, L0) is read off the names of its folders.
"""

import re
from pathlib import Path
from typing import Any

import torch

from . import places
from .files import write_arrays, write_json, write_tensors
from .form import Form
from .stored import Stored

NAME = "gemma_scope"
KEYS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
RESIDUAL = ("res", "resid_post")
ELSEWHERE = "it reads behind a norm of Gemma's, or heads before they are mixed: a place that no site of ours is"
SKIP = "affine_skip_connection"


def recognises(stored: Stored) -> str | None:
    """Five arrays of these names and no others but a linear path, without a config of another tool."""
    said = stored.json.get("config.json")
    second = isinstance(said, dict) and said.get("architecture") in ("jump_relu", "jumprelu")
    for file, tensors in stored.files.items():
        lower = {name.lower() for name in tensors}
        theirs = file.endswith(".npz") or (file.endswith(".safetensors") and set(tensors) - {SKIP} == set(KEYS))
        if lower - {SKIP} == set(KEYS) and (second or theirs):
            return file
    return None


def read(stored: Stored, file: str) -> Form:
    named = {name.lower(): name for name in stored.files[file]}
    d, d_sae = stored.shape(file, named["w_enc"])
    stored.demand(file, named["w_dec"], (d_sae, d))
    for name in ("b_enc", "threshold"):
        stored.demand(file, named[name], (d_sae,))
    skip = stored.whole(file, named[SKIP]).float().T.contiguous() if SKIP in named else None
    found = place(stored)
    return Form(
        "threshold",
        stored.rows(file, named["w_enc"], transposed=True).float(),
        stored.rows(file, named["w_dec"]).float(),
        stored.numbers(file, named["b_enc"]).float(),
        stored.whole(file, named["b_dec"]).float(),
        threshold=stored.numbers(file, named["threshold"]).float(),
        W_skip=skip,
        transcode=skip is not None or found.get("site", "").endswith("TC") or "transcoder" in str(stored.where),
        origin=found | {"of": NAME},
        conventions=("b_dec not subtracted", "input scale already folded"),
        stated=stated(stored.where),
    )


def place(stored: Stored) -> dict[str, Any]:
    """Model and site, by the config or the names of the release's folders."""
    path, said = str(stored.where.absolute()), stored.json.get("config.json") or {}
    found: dict[str, Any] = {"model": said["model_name"]} if said.get("model_name") else {}
    first = re.search(r"gemma-scope-(2b|9b|27b)(-it)?-pt-(res|mlp|att|transcoders)", path)
    layer = re.search(r"layer_(\d+)", path)
    if first:
        found["model"] = f"google/gemma-2-{first[1]}{first[2] or ''}"
    second = re.search(r"(resid_post|attn_out|mlp_out|transcoder)", path)
    kind = (first[3] if first else None) or (second[1] if second else None)
    if layer and kind in RESIDUAL:
        return found | {"site": f"L{layer[1]}R"}
    if said.get("sae_lab_site"):
        return found | places.at(said["sae_lab_site"])
    hook = said.get("hf_hook_point_in") or (f"layer {layer[1]}, {kind}" if layer and kind else None)
    if re.fullmatch(r"model\.layers\.\d+\.output", str(hook)):
        return found | places.at(hook)
    return found | ({"hook": str(hook), "remarks": [ELSEWHERE]} if hook else {})


def stated(path: Path) -> dict[str, float]:
    l0 = re.search(r"l0_(\d+)", str(path))
    return {"l0": float(l0[1])} if l0 else {}


def write(form: Form, folder: Path, dtype: torch.dtype) -> None:
    """The first release's arrays in float32; the second's safetensors in any other precision or with a linear path."""
    if form.fires not in ("threshold", "positive"):
        form.refuse(NAME, "it holds a JumpReLU", f"and this fires by {form.fires!r}", 'Take format="saelens".')
    if form.per_token != "none":
        form.refuse(NAME, "it does not scale tokens one by one", "and this SAE does", "Save it in our own format.")
    threshold = form.thresholds if form.fires == "threshold" else form.zeros()
    form = form.uncentred()
    tensors = {
        "W_enc": form.W_enc.T,
        "W_dec": form.W_dec,
        "b_enc": form.bias,
        "b_dec": form.b_dec,
        "threshold": threshold,
    }
    if dtype == torch.float32 and form.W_skip is None and not form.transcode:
        return write_arrays(folder / "params.npz", tensors)
    lower = {name.lower(): t for name, t in tensors.items()}
    if form.W_skip is not None:
        lower[SKIP] = form.W_skip.T
    said = {
        "architecture": "jump_relu",
        "model_name": form.origin.get("model"),
        "affine_connection": form.W_skip is not None,
    }
    if "site" in form.origin:
        said["sae_lab_site"] = form.origin["site"]
        if form.origin["site"].endswith("R"):
            said["hf_hook_point_in"] = f"model.{places.module(form.origin['site'])}.output"
    write_json(folder / "config.json", said)
    return write_tensors(folder / "params.safetensors", lower, dtype)
