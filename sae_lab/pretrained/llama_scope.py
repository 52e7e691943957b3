"""Llama Scope, first release (He et al. 2024, arXiv:2410.20526): 256 SAEs of Llama-3.1-8B, and its transcoders.

Activations are scaled by sqrt(d) / their mean norm, of which input and output have one each. One threshold serves all
latents, in raw units of the output and of latents whose decoder rows have norm 1: it compares with pre x norm. The
trainer's own order: scale b_enc, b_dec and W_dec, then move decoder norms into the encoder.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, bfloat16, tensor

from ..runs import Damaged
from ..runs.files import whole_folder
from ..saes import SAE
from . import places
from .files import write_json, write_tensors
from .form import Form, unit_rows
from .stored import Said, Stored

NAME = "llama_scope"
KEYS = ("encoder.weight", "encoder.bias", "decoder.weight")
UNSAID = '`save_sae(sae, folder, format="saelens")` can.'


def recognises(stored: Stored) -> str | None:
    """The file of weights, where a hyperparams.json says how to read it."""
    said = stored.json.get("hyperparams.json") or stored.json.get("lm_config.json")
    if not isinstance(said, dict) or "d_sae" not in said:
        return None
    return stored.pick(*KEYS, without=("log_jumprelu_threshold",))


def read(stored: Stored, file: str) -> Form:
    said = stored.json.get("hyperparams.json") or stored.json["lm_config.json"]
    d, d_sae = said.size("d_model"), said.size("d_sae")
    stored.demand(file, "encoder.weight", (d_sae, d))
    stored.demand(file, "decoder.weight", (d, d_sae))
    if said.get("use_glu_encoder"):
        raise ValueError(
            f"{stored.root}: its encoder is gated by a second one (use_glu_encoder), which we do not have."
        )
    per_token, s_in, s_out, applied = scales(said, d, str(stored.root))
    W_enc, W_dec = (
        stored.rows(file, "encoder.weight").float(),
        stored.rows(file, "decoder.weight", transposed=True).float(),
    )
    b_enc = stored.numbers(file, "encoder.bias").float() / s_in
    b_dec = (
        stored.whole(file, "decoder.bias").float() / s_out if said.get("use_decoder_bias", True) else W_dec.new_zeros(d)
    )
    form = Form(
        **rule(said),
        W_enc=W_enc,
        W_dec=W_dec * (s_in / s_out),
        b_enc=b_enc,
        b_dec=b_dec,
        centred=bool(said.get("apply_decoder_bias_to_pre_encoder", False)),
        per_token=per_token,
        transcode=said.get("hook_point_out", said["hook_point_in"]) != said["hook_point_in"],
        origin=places.at(said["hook_point_in"]) | {"of": NAME},
        stated={"l0": float(said["top_k"])} if said.get("top_k") else {},
    )
    if form.transcode and form.centred:
        raise ValueError(
            f"{stored.root}: a transcoder that subtracts the output's bias from its input is none of ours."
        )
    if said.get("sparsity_include_decoder_norm", True):
        form, applied = unit_rows(form), [*applied, "decoder norms moved into the encoder"]
    return replace(form, conventions=tuple(applied))


def scales(said: dict[str, Any], d: int, where: str) -> tuple[str, float, float, list[str]]:
    """(per_token, what scales the input, what scales the output, in words) of a trainer's norm_activation."""
    mode, norms = said.get("norm_activation", "dataset-wise"), said.get("dataset_average_activation_norm")
    if mode == "token-wise":
        return "norm", 1.0, 1.0, ["each token scaled to a norm of sqrt(d)"]
    if mode in ("inference", "none", None):
        return "none", 1.0, 1.0, []
    if mode != "dataset-wise":
        raise ValueError(
            f"{where}: norm_activation={mode!r} depends on the batch, so that no token has latents of its own."
        )
    if not norms:
        raise ValueError(
            f"{where} was trained on activations scaled by their mean norm, and does not say that norm. Measure it, "
            'and give load_sae(..., norm={"in": 12.3, "out": 12.3}).'
        )
    if not all(0 < norms[end] < math.inf for end in ("in", "out")):
        raise Damaged(f"{where}: dataset_average_activation_norm={norms} must be above 0 and finite.")
    s_in, s_out = (math.sqrt(d) / norms[end] for end in ("in", "out"))
    return "none", s_in, s_out, [f"input scaled by {s_in:.4g}, output by {s_out:.4g}, folded"]


def rule(said: Said) -> dict[str, Any]:
    act = said.get("act_fn", "relu").lower()
    if act == "jumprelu":
        threshold = tensor(said.number("jump_relu_threshold"))
        return {"fires": "threshold", "threshold": threshold, "variant": NAME if threshold > 0 else None}
    if act == "topk":
        return {
            "fires": "priced topk" if said.get("sparsity_include_decoder_norm", True) else "topk",
            "k": said.size("top_k"),
        }
    if act == "relu":
        return {"fires": "positive"}
    raise ValueError(f"act_fn={act!r} of a Llama Scope checkpoint is none of jumprelu, topk and relu.")


def write(form: Form, folder: Path, dtype: Any) -> None:
    """Norms are sqrt(d), so that nothing is scaled, and the threshold compares with pre itself: our bits come back."""
    said = {"d_model": form.d_in, "d_sae": form.d_sae, "expansion_factor": form.d_sae / form.d_in}
    if form.fires == "threshold":
        said |= {"act_fn": "jumprelu", "jump_relu_threshold": one_threshold(form)}
    elif form.fires == "positive":
        said |= {"act_fn": "relu"}
    elif form.fires == "topk":
        said |= {"act_fn": "topk", "top_k": form.k}
    else:
        form.refuse(NAME, "it holds a JumpReLU, a ReLU or a TopK", f"and this fires by {form.fires!r}", UNSAID)
    if form.W_skip is not None or form.per_token == "layer_norm":
        form.refuse(NAME, "it has no linear path and no layer norm", "and this SAE has", UNSAID)
    site = where(form, NAME)
    norm = math.sqrt(form.d_in)
    said |= {
        "hook_point_in": places.hook(site),
        "hook_point_out": places.hook(places.Site(site).target if form.transcode else site),
        "norm_activation": "token-wise" if form.per_token == "norm" else "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "sparsity_include_decoder_norm": False,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": form.centred,
        "use_glu_encoder": False,
    }
    write_json(folder / "hyperparams.json", said)
    write_tensors(
        folder / "checkpoints" / "final.safetensors",
        {
            "encoder.weight": form.W_enc,
            "encoder.bias": form.bias,
            "decoder.weight": form.W_dec.T,
            "decoder.bias": form.b_dec,
        },
        dtype,
    )


def write_as_trained(
    sae: SAE, folder: str | Path, norm: float, dtype: Any = bfloat16, lengths: Tensor | None = None
) -> Path:
    """Writes an SAE as the release has its own: of activations scaled by sqrt(d) / norm, with decoder rows of all
    lengths, which the threshold counts. For trying loaders; `save_sae` keeps our bits.

    Args:
        norm: mean norm of the activations.
        lengths: of the decoder's rows; by default the roots of the encoder's.
    """
    form = Form.of(sae)
    s = math.sqrt(form.d_in) / norm
    n = form.W_enc.norm(dim=1).sqrt().clamp(min=1e-6) if lengths is None else lengths
    said = {"d_model": form.d_in, "d_sae": form.d_sae, "expansion_factor": form.d_sae / form.d_in, "top_k": form.k}
    said |= {"act_fn": "jumprelu", "jump_relu_threshold": one_threshold(form), "sparsity_include_decoder_norm": True}
    said |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm}}
    said |= dict.fromkeys(("hook_point_in", "hook_point_out"), places.hook(where(form, NAME)))
    said |= {"use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": form.centred, "use_glu_encoder": False}
    tensors = {"encoder.weight": form.W_enc / n[:, None], "encoder.bias": s * form.bias / n}
    tensors |= {"decoder.weight": (form.W_dec * n[:, None]).T, "decoder.bias": s * form.b_dec}
    with whole_folder(Path(folder)) as new:
        write_json(new / "hyperparams.json", said)
        write_tensors(new / "checkpoints" / "final.safetensors", tensors, dtype)
    return Path(folder)


def where(form: Form, format: str) -> str:
    """Its site.

    Raises:
        ValueError: if nobody said: the file must.
    """
    if "site" not in form.origin:
        form.refuse(format, "it names the place it reads", "and nobody said it", 'Say it: sae.origin["site"] = "L5R".')
    return form.origin["site"]


def one_threshold(form: Form) -> float:
    """The threshold of all latents.

    Raises:
        ValueError: where each has its own.
    """
    first: Tensor = form.thresholds[0]
    if not (form.thresholds == first).all():
        form.refuse(NAME, "its threshold is one number", "and here each latent has its own", UNSAID)
    return first.item()
