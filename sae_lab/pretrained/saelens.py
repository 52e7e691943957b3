"""SAELens 6: cfg.json beside sae_weights.safetensors, matrices as (in, out); of inference and of training folders."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..sites import Site
from . import places
from .files import write_json, write_tensors
from .form import Form, scaled, unit_rows
from .stored import Said, Stored

NAME = "saelens"
WEIGHTS = "sae_weights.safetensors"
VERSION = "6.0.0"
FIRES = {"standard": "positive", "topk": "topk", "jumprelu": "threshold", "gated": "gate", "batchtopk": "threshold"}
FIRES |= {"transcoder": "positive", "skip_transcoder": "positive", "jumprelu_transcoder": "threshold"}
FIRES |= {"jumprelu_skip_transcoder": "threshold", "matryoshka_batchtopk": "threshold"}
PER_TOKEN = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "norm"}
ONLY_OURS = "Save it in our own format: save_sae(sae, folder)."


def recognises(stored: Stored) -> str | None:
    said = stored.json.get("cfg.json")
    if not isinstance(said, dict) or "d_sae" not in said:
        return None
    return stored.pick("W_enc", "W_dec", "b_dec")


def read(stored: Stored, file: str) -> Form:
    said = modern(stored.json["cfg.json"])
    d, d_sae = said.size("d_in"), said.size("d_sae")
    d_out = said.get("d_out") or d
    tensors = stored.files[file]
    stored.demand(file, "W_enc", (d, d_sae))
    stored.demand(file, "W_dec", (d_sae, d_out))
    if d_out != d:
        raise ValueError(f"{stored.root}: it reads {d} numbers and writes {d_out}; ours have one width for both.")
    refuse_unknown(stored, file, said)
    form = Form(
        **rule(stored, file, said),
        W_enc=stored.rows(file, "W_enc", transposed=True).float(),
        W_dec=stored.rows(file, "W_dec").float(),
        b_dec=stored.whole(file, "b_dec").float(),
        W_skip=stored.whole(file, "W_skip").float() if "W_skip" in tensors else None,
        centred=said.get("apply_b_dec_to_input", True) and "transcoder" not in said["architecture"],
        transcode="transcoder" in said["architecture"],
        origin=origin(said),
        stated={"l0": float(said["metadata"]["l0"])} if said["metadata"].get("l0") else {},
    )
    applied = ["b_dec subtracted before the encoder" if form.centred else "b_dec not subtracted"]
    if said.get("rescale_acts_by_decoder_norm") and form.fires in ("topk", "threshold"):
        form, applied = unit_rows(form), [*applied, "decoder norms moved into the encoder"]
    return normalised(form, said, stored, applied)


def refuse_unknown(stored: Stored, file: str, said: Said) -> None:
    """Raises:
    ValueError: what an old config asks for and none of ours does.
    """
    if "scaling_factor" in stored.files[file] and not (stored.numbers(file, "scaling_factor") == 1).all():
        raise ValueError(f"{stored.root}: latents of a scaling_factor of their own, which ours do not have.")
    if said.get("activation_fn", "relu") not in ("relu", "topk"):
        raise ValueError(
            f"{stored.root}: activation_fn={said['activation_fn']!r} of SAELens is none of ours: relu, topk."
        )


def modern(said: Said) -> Said:
    """A config as version 6 writes it."""
    file, said = said.file, Said({**said, "metadata": dict(said.get("metadata") or {})})
    said.file = file
    for old, new in (("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")):
        if old in said:
            said.setdefault(new, said[old])
    said.setdefault("architecture", "standard")
    if said.get("activation_fn") == "topk" and said["architecture"] == "standard":
        said |= {"architecture": "topk", "k": (said.get("activation_fn_kwargs") or {}).get("k")}
    if said.get("normalize_activations") is True:
        said["normalize_activations"] = "expected_average_only_in"
    return said


def rule(stored: Stored, file: str, said: Said) -> dict[str, Any]:
    name, tensors = said["architecture"], stored.files[file]
    if name not in FIRES:
        raise ValueError(f"{stored.root}: architecture {name!r} of SAELens is none of ours: {', '.join(FIRES)}.")
    found: dict[str, Any] = {"fires": FIRES[name], "b_enc": None}
    if "b_enc" in tensors:
        found["b_enc"] = stored.numbers(file, "b_enc").float()
    if name == "topk":
        found["k"] = said.size("k")
    elif name == "gated":
        found |= {
            new: stored.numbers(file, old).float()
            for new, old in (("b_enc", "b_gate"), ("b_mag", "b_mag"), ("r_mag", "r_mag"))
        }
    elif "topk_threshold" in tensors:
        found |= {
            "threshold": stored.whole(file, "topk_threshold").float(),
            "variant": "batchtopk",
            "k": round(said.get("k", 1)),
        }
    elif "log_threshold" in tensors:
        found["threshold"] = stored.numbers(file, "log_threshold").double().exp()
    elif FIRES[name] == "threshold":
        found["threshold"] = stored.numbers(file, "threshold").float()
    return found


def normalised(form: Form, said: dict[str, Any], stored: Stored, applied: list[str]) -> Form:
    """Of raw activations, where the file is of scaled ones."""
    how = said.get("normalize_activations", "none") or "none"
    if how in PER_TOKEN:
        if PER_TOKEN[how] != "none":
            applied = [*applied, f"each token scaled by its {PER_TOKEN[how].replace('_', ' ')}"]
        return replace(form, per_token=PER_TOKEN[how], conventions=tuple(applied))
    scale = (stored.json.get("activation_scaler.json") or {}).get("scaling_factor")
    norms = said.get("dataset_average_activation_norm")
    if norms:
        scale = math.sqrt(form.d_in) / float(norms["in"])
    if how != "expected_average_only_in" or not scale:
        raise ValueError(
            f"{stored.root} was trained with normalize_activations={how!r} and does not say by how much. Measure the "
            'mean norm of the site, and give load_sae(..., norm={"in": 12.3}).'
        )
    # b_enc and thresholds are of pre-activations, which do not change
    return replace(scaled(form, scale), conventions=(*applied, f"activations scaled by {scale:.4g}, folded"))


def origin(said: dict[str, Any]) -> dict[str, Any]:
    said = {**said, **said["metadata"]}
    found = places.at(said.get("hook_name"), said.get("model_name")) | {"of": NAME}
    for key, ours in (("model_name", "model"), ("context_size", "context"), ("dataset_path", "dataset")):
        if said.get(key):
            found[ours] = said[key]
    if said.get("hook_head_index") is not None or said.get("reshape_activations") == "hook_z":
        found["remarks"] = ["it reads attention heads before they are mixed (hook_z), a place we do not read"]
    return found


def write(form: Form, folder: Path, dtype: torch.dtype) -> None:
    name = architecture(form)
    tensors = {"W_enc": form.W_enc.T, "W_dec": form.W_dec, "b_dec": form.b_dec}
    if form.fires == "gate":
        tensors |= {"b_gate": form.bias, "b_mag": form.b_mag, "r_mag": form.r_mag}
    else:
        tensors["b_enc"] = form.bias
    if form.fires == "threshold":
        tensors["threshold"] = form.thresholds
    if form.W_skip is not None:
        tensors["W_skip"] = form.W_skip
    said: dict[str, Any] = {"architecture": name, "d_in": form.d_in, "d_sae": form.d_sae, "dtype": str(dtype)[6:]}
    said |= {"device": "cpu", "apply_b_dec_to_input": form.centred, "reshape_activations": "none"}
    said["normalize_activations"] = {ours: theirs for theirs, ours in PER_TOKEN.items()}[form.per_token]
    if form.transcode:
        said["d_out"] = form.d_in
    if form.fires == "topk":
        said |= {"k": form.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / "cfg.json", said | {"metadata": metadata(form)})
    write_tensors(folder / WEIGHTS, tensors, dtype)


def architecture(form: Form) -> str:
    if form.transcode:
        names = {"positive": "transcoder", "threshold": "jumprelu_transcoder"}
        if form.fires in names:
            return names[form.fires].replace(
                "transcoder", "skip_transcoder" if form.W_skip is not None else "transcoder"
            )
        form.refuse(NAME, "its transcoders fire by a ReLU or a threshold", f"not by {form.fires!r}", ONLY_OURS)
    names = {"positive": "standard", "topk": "topk", "threshold": "jumprelu", "gate": "gated"}
    if form.fires not in names:
        form.refuse(NAME, "it has no such rule", f"{form.fires!r}", ONLY_OURS)
    return names[form.fires]


def metadata(form: Form) -> dict[str, Any]:
    """Without a version of 6 the file would be read as an old one."""
    found: dict[str, Any] = {"sae_lens_version": VERSION, "sae_lens_training_version": None}
    if "site" in form.origin:
        site = Site(form.origin["site"])
        found["hook_name"] = places.hook(site)
        if site.part != "TC":  # its module's output has the norm's gain
            found["hf_hook_name"] = f"model.{places.module(site)}"
        if form.transcode:
            found["hook_name_out"] = places.hook(site.target)
    for ours, key in (("model", "model_name"), ("context", "context_size"), ("dataset", "dataset_path")):
        if form.origin.get(ours):
            found[key] = form.origin[ours]
    return found | {"prepend_bos": True}
