"""sparsify (EleutherAI): cfg.json beside sae.safetensors; TopK or GroupMax, with transcoders and skip paths."""

from pathlib import Path
from typing import Any

import torch

from ..sites import Site
from . import places
from .files import write_json, write_tensors
from .form import Form
from .stored import Stored

NAME = "sparsify"
WEIGHTS = "sae.safetensors"
FIRES = {"topk": "topk", "groupmax": "grouptop"}


def recognises(stored: Stored) -> str | None:
    said = stored.json.get("cfg.json")
    if not isinstance(said, dict) or "expansion_factor" not in said:
        return None
    return stored.pick("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read(stored: Stored, file: str) -> Form:
    said = stored.json["cfg.json"]
    d_sae, d = stored.shape(file, "encoder.weight")
    stored.demand(file, "W_dec", (d_sae, d))
    asked = said.get("num_latents") or int(said.get("d_in", d) * said.number("expansion_factor"))
    stored.demand(file, "encoder.weight", (asked, said.get("d_in", d)))
    rule = said.get("activation", "topk")
    if rule not in FIRES or said.get("signed"):
        what = "signed=true" if said.get("signed") else f"activation={rule!r}"
        raise ValueError(f"{stored.root}: {what} of sparsify is not of ours, which are {' and '.join(FIRES)}.")
    transcode = bool(said.get("transcode", False))
    return Form(
        FIRES[rule],
        stored.rows(file, "encoder.weight").float(),
        stored.rows(file, "W_dec").float(),
        stored.numbers(file, "encoder.bias").float(),
        stored.whole(file, "b_dec").float(),
        k=said.size("k"),
        W_skip=stored.whole(file, "W_skip").float() if said.get("skip_connection") else None,
        centred=not transcode,
        transcode=transcode,
        origin=origin(stored, transcode) | {"of": NAME},
        conventions=("b_dec not subtracted" if transcode else "b_dec subtracted before the encoder",),
    )


def origin(stored: Stored, transcode: bool) -> dict[str, Any]:
    """By the folder, which is named by the module whose output is read, `layers.5`; a seed may come below it."""
    for folder in (stored.root, stored.root.parent):
        found = places.at(folder.name)
        if "site" in found and not transcode:
            return found
        if "site" in found:
            return {
                "hook": folder.name,
                "remarks": ["it reads the module's input, norm and gain included: none of our sites"],
            }
    return {}


def write(form: Form, folder: Path, dtype: torch.dtype) -> None:
    """Into `folder` itself; theirs are named by the module they read, such as layers.5."""
    rules = {ours: theirs for theirs, ours in FIRES.items()}
    if form.fires not in rules:
        form.refuse(
            NAME, "it keeps k latents of each token", f"and this fires by {form.fires!r}", 'Take format="saelens".'
        )
    if form.per_token != "none":
        form.refuse(NAME, "it does not scale tokens one by one", "and this SAE does", "Save it in our own format.")
    if not form.transcode and not form.centred:
        form.refuse(
            NAME, "its SAEs subtract b_dec before the encoder", "and this one does not", 'Take format="saelens".'
        )
    if form.W_skip is not None and not form.transcode:
        form.refuse(NAME, "a linear path is for transcoders", "and this is none", "Save it in our own format.")
    if form.fires == "grouptop" and form.d_sae % form.k:
        uneven = f"and here k={form.k} does not divide d_sae={form.d_sae}"
        form.refuse(NAME, "its groups are all of one size", uneven, "Save it in our own format.")
    said = {
        "activation": rules[form.fires],
        "expansion_factor": max(1, form.d_sae // form.d_in),
        "normalize_decoder": True,
    }
    said |= {"num_latents": form.d_sae, "k": form.k, "multi_topk": False, "skip_connection": form.W_skip is not None}
    tensors = {"encoder.weight": form.W_enc, "encoder.bias": form.bias, "W_dec": form.W_dec, "b_dec": form.b_dec}
    if form.W_skip is not None:
        tensors["W_skip"] = form.W_skip
    write_json(folder / "cfg.json", said | {"transcode": form.transcode, "d_in": form.d_in})
    write_tensors(folder / WEIGHTS, tensors, dtype)


def folder_name(site: str) -> str:
    """What their loaders look for: the module whose output is read."""
    return places.module(Site(site))
