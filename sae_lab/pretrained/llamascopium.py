"""Llamascopium (OpenMOSS Language-Model-SAEs today), and Llama Scope's R1-Distill release of 2025.

A threshold per latent, stored as its logarithm, compares with pre times the decoder row's norm where the config says so
(sparsity_include_decoder_norm); latents keep their own value, so here each threshold is divided by that norm.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..runs import Damaged
from . import places
from .files import write_json, write_tensors
from .form import Form, scaled
from .llama_scope import scales, where
from .stored import Said, Stored

NAME = "llamascopium"
LOG = "activation_function.log_jumprelu_threshold"
OLD_LOG = "log_jumprelu_threshold"
NORM = "dataset_average_activation_norm."
OURS = 'Take format="saelens", or our own.'


def recognises(stored: Stored) -> str | None:
    if not isinstance(stored.json.get("config.json"), dict):
        return None
    return stored.pick("W_E", "b_E", "W_D") or stored.pick("encoder.weight", "decoder.weight", OLD_LOG)


def read(stored: Stored, file: str) -> Form:
    said, tensors, root = stored.json["config.json"], stored.files[file], str(stored.root)
    new = "W_E" in tensors
    enc, dec, b_enc, b_dec = (
        ("W_E", "W_D", "b_E", "b_D") if new else ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")
    )
    d = said.size("d_model")
    d_sae = said.size("d_sae") if said.get("d_sae") else round(d * said.number("expansion_factor"))
    stored.demand(file, enc, (d, d_sae) if new else (d_sae, d))
    stored.demand(file, dec, (d_sae, d) if new else (d, d_sae))
    if said.get("sae_type", "sae") not in ("sae", "transcoder") or said.get("use_glu_encoder"):
        what = said.get("sae_type", "sae") if not said.get("use_glu_encoder") else "a gated encoder (use_glu_encoder)"
        raise ValueError(f"{root}: it is {what!r}, which is none of ours: an SAE or a transcoder of one layer.")
    W_dec = stored.rows(file, dec, transposed=not new).float()
    hooks = said.get("hook_point_in"), said.get("hook_point_out") or said.get("hook_point_in")
    form = Form(
        **rule(stored, file, said, W_dec, new),
        W_enc=stored.rows(file, enc, transposed=new).float(),
        W_dec=W_dec,
        b_enc=stored.numbers(file, b_enc).float(),
        b_dec=stored.whole(file, b_dec).float() if b_dec in tensors else W_dec.new_zeros(d),
        centred=bool(said.get("apply_decoder_bias_to_pre_encoder", False)) and hooks[0] == hooks[1],
        transcode=hooks[0] != hooks[1],
        origin=places.at(hooks[0]) | {"of": NAME} | ({"model": said["model_name"]} if said.get("model_name") else {}),
        stated={"l0": float(said["top_k"])} if said.get("top_k") and said.get("act_fn") != "relu" else {},
    )
    mode = said.get("norm_activation", "inference" if new else "dataset-wise")
    per_token, s_in, s_out, applied = scales(
        {"norm_activation": mode, "dataset_average_activation_norm": norms(stored, file, said, hooks)}, d, root
    )
    if by_norm(said):
        applied.append("thresholds are of pre-activations times decoder norms")
    return replace(scaled(form, s_in, s_out), per_token=per_token, conventions=tuple(applied))


def by_norm(said: Said) -> bool:
    return bool(said.get("sparsity_include_decoder_norm", False))


def norms(stored: Stored, file: str, said: Said, hooks: tuple) -> dict[str, float] | None:
    """As given, in the config, or in the tensors; a number that no norm can be was never set by the trainer."""
    if said.get("dataset_average_activation_norm"):
        return said["dataset_average_activation_norm"]
    found = [NORM + str(h) for h in hooks]
    if not all(name in stored.files[file] for name in found):
        return None
    values = [float(stored.whole(file, name)) for name in found]
    return dict(zip(("in", "out"), values)) if all(1e-6 < v < 1e9 and math.isfinite(v) for v in values) else None


def rule(stored: Stored, file: str, said: Said, W_dec: torch.Tensor, new: bool) -> dict[str, Any]:
    act, log = said.get("act_fn", "jumprelu").lower(), LOG if new else OLD_LOG
    if act == "jumprelu":
        if log not in stored.files[file]:
            raise Damaged(f"{stored.root / file} has no {log}, which act_fn='jumprelu' needs.")
        threshold = stored.numbers(file, log).double().exp()
        if by_norm(said):
            threshold = threshold / W_dec.double().norm(dim=1).clamp(min=1e-30)
        return {"fires": "threshold", "threshold": threshold}
    if act == "relu":
        return {"fires": "positive"}
    if act == "topk":
        return {"fires": "priced topk" if by_norm(said) else "topk", "k": said.size("top_k")}
    raise ValueError(
        f"{stored.root}: act_fn={act!r} chooses among a whole batch and was saved without a threshold, so that a token "
        "alone has no latents. Convert it to a JumpReLU where it was trained."
    )


def write(form: Form, folder: Path, dtype: torch.dtype) -> None:
    acts = {"threshold": "jumprelu", "positive": "relu", "topk": "topk", "priced topk": "topk"}
    if form.fires not in acts:
        form.refuse(NAME, "it holds a JumpReLU, a ReLU or a TopK", f"and this fires by {form.fires!r}", OURS)
    if form.W_skip is not None or form.per_token == "layer_norm":
        form.refuse(NAME, "it has no linear path and no layer norm", "and this SAE has", OURS)
    form = form.uncentred()
    site = places.Site(where(form, NAME))
    ends = places.hook(site), places.hook(site.target if form.transcode else site)
    tensors = {"W_E": form.W_enc.T, "b_E": form.bias, "W_D": form.W_dec, "b_D": form.b_dec}
    said: dict[str, Any] = {"sae_type": "sae", "d_model": form.d_in, "expansion_factor": form.d_sae / form.d_in}
    said |= {"act_fn": acts[form.fires], "hook_point_in": ends[0], "hook_point_out": ends[1], "use_decoder_bias": True}
    said |= {"norm_activation": "token-wise" if form.per_token == "norm" else "inference", "use_glu_encoder": False}
    said |= {"sparsity_include_decoder_norm": form.fires == "priced topk", "dtype": str(dtype)}
    if form.k is not None and form.fires.endswith("topk"):
        said["top_k"] = form.k
    if form.fires == "threshold":
        tensors[LOG] = form.thresholds.double().log().float()
    if form.origin.get("model"):
        said["model_name"] = form.origin["model"]
    write_json(folder / "config.json", said)
    write_tensors(folder / "sae_weights.safetensors", tensors, dtype)
