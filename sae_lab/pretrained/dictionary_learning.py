"""dictionary_learning: ae.pt, a state_dict, beside config.json; its tensors and config tell which class wrote it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runs import Damaged
from ..sites import Site
from . import places
from .files import write_json, write_pickle
from .form import Form
from .stored import Stored

NAME = "dictionary_learning"
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
JUMP = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
OURS = "Save it in our own format, or as saelens."


def recognises(stored: Stored) -> str | None:
    if kind(stored) is None and any(f.endswith(("params.npz", "params.safetensors")) for f in stored.files):
        return None
    for file, tensors in stored.files.items():
        if file.endswith((".pt", ".pth")) and dict_class(stored, file, tensors):
            return file
    return None


def kind(stored: Stored) -> str | None:
    said = stored.json.get("config.json")
    return (
        said.get("trainer", {}).get("dict_class")
        if isinstance(said, dict) and isinstance(said.get("trainer"), dict)
        else None
    )


def dict_class(stored: Stored, file: str, tensors: Any) -> str | None:
    """Which of their classes wrote this; None: none of them."""
    tensors, said = {name.removeprefix("ae.") for name in tensors}, kind(stored)
    if "group_sizes" in tensors:
        return "MatryoshkaBatchTopKSAE"
    if "threshold" in tensors and "k" in tensors:
        if said not in ("AutoEncoderTopK", "BatchTopKSAE"):
            raise ValueError(
                f"{stored.root / file} is a TopK or a BatchTopK of dictionary_learning, which have the same tensors "
                f"and choose differently; its config.json does not say which (dict_class={said!r}). Put that beside it."
            )
        return said
    if set(JUMP) <= tensors and said in (None, "JumpReluAutoEncoder"):
        return "JumpReluAutoEncoder" if said else None
    if {"decoder_bias", "r_mag"} <= tensors:
        return "GatedAutoEncoder"
    if set(LINEAR) <= tensors and "bias" in tensors:
        return "AutoEncoder"
    if {*LINEAR, "decoder.bias"} <= tensors and said is not None:
        return "AutoEncoderNew"
    return None


def read(stored: Stored, file: str) -> Form:
    tensors = stored.files[file]
    name, inside = (
        dict_class(stored, file, tensors),
        "ae." if "ae.encoder.weight" in tensors or "ae.W_enc" in tensors else "",
    )
    get = lambda key: stored.whole(file, inside + key).float()  # noqa: E731
    per = lambda key: stored.numbers(file, inside + key).float()  # noqa: E731
    flat = name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
    enc, dec = (inside + key for key in (("W_enc", "W_dec") if flat else ("encoder.weight", "decoder.weight")))
    shape = stored.shape(file, enc)
    stored.demand(file, dec, shape[::-1])
    if len(shape) != 2:
        raise Damaged(f"{stored.root / file}: {enc} is {list(shape)} and should be a matrix.")
    form = Form(
        **rule(name, stored, file, get, per, inside),
        W_enc=stored.rows(file, enc, transposed=flat).float(),
        W_dec=stored.rows(file, dec, transposed=not flat).float(),
        centred=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        origin=origin(stored),
    )
    folded = "input scale already folded"
    if inside:  # a backup amid training, written in units of scaled activations
        norm = stored.extra.get("norm_factor")
        if not isinstance(norm, int | float) or not 0 < norm < math.inf:
            raise ValueError(
                f"{stored.root / file} is a backup amid training, of activations divided by a norm_factor that it does "
                f"not say ({norm!r}). Take a checkpoint, or the ae.pt of the end."
            )
        form, folded = in_units(form, norm), f"activations divided by {norm:.4g}, folded"
    applied = ["b_dec subtracted before the encoder" if form.centred else "b_dec not subtracted", folded]
    return replace(form, conventions=(name, *applied))


def in_units(form: Form, norm: float) -> Form:
    """As their scale_biases: latents grow with the activations."""
    grown = {
        n: getattr(form, n) * norm for n in ("b_enc", "b_mag", "b_dec", "threshold") if getattr(form, n) is not None
    }
    return replace(form, **grown)


def rule(name: str, stored: Stored, file: str, get: Any, per: Any, inside: str) -> dict[str, Any]:
    if name == "AutoEncoder":
        return {"fires": "positive", "b_enc": per("encoder.bias"), "b_dec": get("bias")}
    if name == "AutoEncoderNew":
        return {"fires": "positive", "b_enc": per("encoder.bias"), "b_dec": get("decoder.bias")}
    if name == "GatedAutoEncoder":
        gates = {"b_enc": per("gate_bias"), "b_mag": per("mag_bias"), "r_mag": per("r_mag")}
        return {"fires": "gate", "b_dec": get("decoder_bias"), **gates}
    if name == "JumpReluAutoEncoder":
        return {"fires": "threshold", "threshold": per("threshold"), "b_enc": per("b_enc"), "b_dec": get("b_dec")}
    bias = per("b_enc" if name == "MatryoshkaBatchTopKSAE" else "encoder.bias")
    found: dict[str, Any] = {"b_enc": bias, "b_dec": get("b_dec"), "k": int(stored.whole(file, inside + "k"))}
    if name == "AutoEncoderTopK":
        return found | {"fires": "topk"}
    threshold = get("threshold")
    if threshold < 0:  # as theirs does: nothing but the sign decides
        return found | {"fires": "positive", "k": None, "stated": {"l0": float(found["k"])}}
    return found | {
        "fires": "threshold",
        "threshold": threshold,
        "variant": "batchtopk",
        "stated": {"l0": float(found["k"])},
    }


def origin(stored: Stored) -> dict[str, Any]:
    said = stored.json.get("config.json") or {}
    trainer, buffer = said.get("trainer") or {}, said.get("buffer") or {}
    name, layer = str(trainer.get("submodule_name", "")), trainer.get("layer")
    found = places.at(name)
    if "site" not in found and isinstance(layer, int):
        found = {"site": f"L{layer}R"}
    found["of"] = NAME
    for value, ours in ((trainer.get("lm_name"), "model"), (buffer.get("ctx_len"), "context")):
        if value:
            found[ours] = value
    return found


def write(form: Form, folder: Path, dtype: torch.dtype) -> None:
    if form.transcode or form.per_token != "none":
        form.refuse(NAME, "it has neither transcoders of ours nor scales per token", "and this SAE needs one", OURS)
    name, tensors = written(form)
    trainer = {"dict_class": name, "activation_dim": form.d_in, "dict_size": form.d_sae}
    if form.k is not None:
        trainer["k"] = form.k
    if "site" in form.origin:
        site = Site(form.origin["site"])
        trainer |= {"layer": site.layer, "submodule_name": f"model.{places.module(site)}"}
    if form.origin.get("model"):
        trainer["lm_name"] = form.origin["model"]
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": form.origin.get("context")}})
    write_pickle(folder / "ae.pt", tensors, dtype)


def written(form: Form) -> tuple[str, dict[str, Tensor]]:
    """(their class, its tensors)."""
    linear = {"encoder.weight": form.W_enc, "decoder.weight": form.W_dec.T}
    if form.fires == "positive" and form.centred:
        return "AutoEncoder", {"bias": form.b_dec, "encoder.bias": form.bias, **linear}
    if form.fires == "positive":
        return "AutoEncoderNew", {"encoder.bias": form.bias, "decoder.bias": form.b_dec, **linear}
    if form.fires == "gate" and form.centred:
        return "GatedAutoEncoder", {
            "decoder_bias": form.b_dec,
            "gate_bias": form.bias,
            "mag_bias": form.b_mag,
            "r_mag": form.r_mag,
            **linear,
        }
    whole = {"encoder.bias": form.bias, "b_dec": form.b_dec, **linear}
    if form.fires == "topk" and form.centred:
        return "AutoEncoderTopK", {"k": torch.tensor(form.k, dtype=torch.int), "threshold": torch.tensor(-1.0), **whole}
    if form.fires == "threshold" and form.centred and not form.threshold.dim():
        k = torch.tensor(form.k or 1, dtype=torch.int)
        return "BatchTopKSAE", {"k": k, "threshold": form.threshold, **whole}
    if form.fires == "threshold":
        form = form.uncentred()
        return "JumpReluAutoEncoder", {
            "W_enc": form.W_enc.T,
            "b_enc": form.bias,
            "W_dec": form.W_dec,
            "b_dec": form.b_dec,
            "threshold": form.thresholds,
        }
    form.refuse(NAME, "its TopK and gates subtract b_dec before the encoder", f"and this {form.fires!r} does not", OURS)
    raise AssertionError
