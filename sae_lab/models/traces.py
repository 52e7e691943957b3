"""The door to nnsight: every traced run of a model, one plain function each.

Unusual here: nnsight finds a trace's body by its line in this file and runs it inside the model's forward pass. So
bodies take locals (never `self`), read sites in the order in which the model computes them, and are entered by one
thread at a time (`models.lm` holds the lock).
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from nnsight import TransformersModel, save
from torch import Tensor

from sae_lab.shapes import Acts, Ids, Logits, Scalar
from sae_lab.sites import Site

Change = Callable[[Acts, Acts], Tensor]  # (what is read at the site, what stands where it writes) -> what to write


def wrap(module: torch.nn.Module, tokenizer: Any) -> TransformersModel:
    """The traceable form of a loaded Hugging Face model; the tokenizer is copied, since nnsight changes it."""
    return TransformersModel(module.requires_grad_(False).eval(), tokenizer=copy.deepcopy(tokenizer))


def mlp_norm(layer: Any) -> Any:
    """The normalisation in front of a layer's MLP: Gemma 2 and later name it differently from Llama."""
    return getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)


def normalised(m: Acts, eps: float) -> Acts:
    """Scaled to unit root mean square along the last axis, computed in float32 as Llama does, without a weight."""
    y = m.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(m.dtype)


def read(
    model: TransformersModel, ids: Ids, sites: Iterable[Site], eps: float
) -> dict[Site, Float[Tensor, "batch seq d_in"]]:
    """Activations at sites, from one forward pass that ends after the last of them."""
    ordered, layers = sorted(sites, key=lambda s: s.order), model.model.layers
    with torch.no_grad(), model.trace(input_ids=ids, use_cache=False) as tracer:
        found = save({})
        for site in ordered:
            found[site] = _get(layers[site.layer], site, eps)
        tracer.stop()
    return found


def run(
    model: TransformersModel,
    ids: Ids,
    changes: dict[Site, Change],
    eps: float,
    grad: bool = False,
    residuals: Iterable[Site] = (),
) -> tuple[Logits, dict[Site, Float[Tensor, "batch seq d_in"]]]:
    """(logits, residuals behind every change) of a run in which sites hold what their changes make of them."""
    layers = model.model.layers
    with torch.set_grad_enabled(grad), model.trace(input_ids=ids, use_cache=False):
        _put_all(layers, changes, eps)
        found = save({})
        for site in residuals:
            found[site] = _output(layers[site.layer], site.part)
        out = save(model.output.logits)
    return out, found


def gradients(
    model: TransformersModel, ids: Ids, sites: Iterable[Site], measure: Callable[[Logits], Scalar], weight: Callable
) -> dict[Site, Float[Tensor, "batch seq d_in"]]:
    """Gradients at sites of a number computed from the logits; the graph begins at the first site."""
    ordered, layers = sorted(sites, key=lambda s: s.order), model.model.layers
    with torch.enable_grad(), model.trace(input_ids=ids, use_cache=False):
        points = []
        for site in ordered:
            points.append(_point(layers[site.layer], site, leaf=not points))
        total = measure(model.output.logits)
        if total.grad_fn is None:
            raise RuntimeError("This place runs the model without an autograd graph: gradients need a local model.")
        found = save(list(torch.autograd.grad(total, points)))
    scaled = (g * weight(s.layer) if s.part == "TC" else g for s, g in zip(ordered, found))
    return dict(zip(ordered, scaled))


def step(
    model: TransformersModel,
    ids: Ids,
    cache: Any,
    mask: Bool[Tensor, "batch past"],
    positions: Ids,
    changes: dict[Site, Change],
    eps: float,
) -> Float[Tensor, "batch vocab"]:
    """Next-token logits after one more piece of text, continuing (and extending) a key-value cache."""
    layers = model.model.layers
    with (
        torch.no_grad(),
        model.trace(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ),
    ):
        _put_all(layers, changes, eps)
        out = save(model.output.logits[:, -1])
    return out  # noqa: RET504 (a body cannot return)


def _get(layer: Any, site: Site, eps: float) -> Acts:
    if site.part == "TC":
        return normalised(mlp_norm(layer).input.detach(), eps)
    return _output(layer, site.part).detach()


def _place(layer: Any, part: str) -> tuple[Any, str]:
    """The module at which a part stands, and on which side of it; a TC where its gradient is taken."""
    module = {"R": layer, "A": layer.self_attn, "N": layer.mlp.down_proj}.get(part, layer.mlp)
    return module, "input" if part in ("N", "TC") else "output"


def _output(layer: Any, part: str) -> Tensor:
    out = getattr(*_place(layer, part))
    return out[0] if isinstance(out, tuple) else out


def _put_all(layers: Any, changes: dict[Site, Change], eps: float) -> None:
    """Every change at its place; a TC is read before its layer's neurons are, and written after them."""
    read = {}
    for site in sorted({*changes, *(s.target for s in changes)}, key=lambda s: s.order):
        layer, tc = layers[site.layer], f"L{site.layer}TC"
        if site == tc:
            read[tc] = normalised(mlp_norm(layer).input, eps)
        elif site.part == "M" and tc in changes:
            layer.mlp.output = changes[tc](read[tc], layer.mlp.output)
        if site != tc and site in changes:
            _put(layer, site.part, changes[site])


def _put(layer: Any, part: str, change: Change) -> Tensor:
    """What stands at a part once it is changed."""
    module, side = _place(layer, part)
    out = getattr(module, side)
    x = out[0] if isinstance(out, tuple) else out
    new = change(x, x)
    setattr(module, side, (new, *out[1:]) if isinstance(out, tuple) else new)
    return new


def _point(layer: Any, site: Site, leaf: bool) -> Tensor:
    """The tensor to differentiate at; a TC's is the MLP's input, whose gradient is then scaled by the norm's weight."""
    if leaf:
        return _put(layer, site.part, lambda x, _: x.detach().requires_grad_(True))
    return _output(layer, site.part)
