"""The door to nnsight: every traced run of a model, one plain function each.

Unusual here: nnsight finds a trace's body by its line in this file and runs it inside the model's forward pass, here or
where a `backend` sends it. So bodies take locals (never `self`), read sites in the order in which the model computes
them, use nothing of this package but `there`, and are entered by one thread at a time (`models.lm` holds the lock).
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from nnsight import TransformersModel, save
from torch import Tensor
from transformers import DynamicCache

from sae_lab.models import there
from sae_lab.shapes import Acts, Ids, Logits, Mask, PerPlace, Scalar
from sae_lab.sites import Site

Change = Callable[[Acts, Acts], Tensor]  # (what is read at the site, what stands where it writes) -> what to write
Found = dict[str, Any]  # tensors; a server may send anything, and `models.remote` looks


def wrap(module: torch.nn.Module, tokenizer: Any) -> TransformersModel:
    """The traceable form of a loaded Hugging Face model; the tokenizer is copied, since nnsight changes it."""
    return TransformersModel(module.requires_grad_(False).eval(), tokenizer=copy.deepcopy(tokenizer))


def outline(source: str, tokenizer: Any, revision: str | None) -> TransformersModel:
    """The traceable form of a model without weights: its config alone is read."""
    more = {} if revision is None else {"revision": revision}
    return TransformersModel(source, tokenizer=copy.deepcopy(tokenizer), task="text-generation", **more)


def read(
    model: TransformersModel,
    ids: Ids,
    sites: Iterable[Site],
    eps: float,
    keep: Mask | None = None,
    kind: torch.dtype | None = None,
    changes: dict[Site, Change] | None = None,
    backend: Any = None,
) -> Found:
    """Activations at sites, from one forward pass that ends after the last of them; changes are at sites before.

    Args:
        keep: the places that are given back, [rows, d_in]; None: all, [batch, seq, d_in].
        kind: the precision in which they are.
    """
    wanted, made = _plain(sites), _made(changes or {})
    layers, get, sent, put_all = model.model.layers, there.get, there.sent, there.put_all
    with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, backend=backend) as tracer:
        put_all(layers, made, eps)
        found = save({})
        for name, site in wanted:
            found[name] = sent(get(layers, site, eps), keep, kind)
        tracer.stop()
    return found


def run(
    model: TransformersModel,
    ids: Ids,
    changes: dict[Site, Change],
    eps: float,
    grad: bool = False,
    residuals: Iterable[Site] = (),
    kind: torch.dtype | None = None,
    backend: Any = None,
) -> tuple[Logits, dict[str, Float[Tensor, "batch seq d_in"]]]:
    """(logits, residuals behind every change) of a run in which sites hold what their changes make of them."""
    layers, put_all, output, sent = model.model.layers, there.put_all, there.output, there.sent
    behind, made = _plain(residuals), _made(changes)
    with torch.set_grad_enabled(grad), model.trace(input_ids=ids, use_cache=False, backend=backend):
        put_all(layers, made, eps)
        found = save({})
        for name, (layer, part) in behind:
            found[name] = output(layers[layer], part)
        out = save(sent(model.output.logits, None, kind))
    return out, found


def spliced(
    model: TransformersModel, ids: Ids, changes: dict[Site, Change], eps: float, residuals: Iterable[Site], backend: Any
) -> dict[str, PerPlace]:
    """What changes cost: "ce", "ce_clean" and "kl" by place, and by residual how far it moved; logits stay there."""
    layers, put_all, output, ce, kl = model.model.layers, there.put_all, there.output, there.ce, there.kl
    behind, made, order = _plain(residuals), _made(changes), list
    with torch.no_grad(), model.session(backend=backend):
        with model.trace(input_ids=ids, use_cache=False):
            before = order(output(layers[layer], part) for _, (layer, part) in behind)
            clean = model.output.logits
        with model.trace(input_ids=ids, use_cache=False):
            put_all(layers, made, eps)
            after = order(output(layers[layer], part) for _, (layer, part) in behind)
            logits = model.output.logits
        here = ids.to(logits.device)
        found = save({"ce": ce(logits, here), "ce_clean": ce(clean, here), "kl": kl(clean, logits)})
        for (name, _), a, b in zip(behind, after, before):
            found[name] = (a.float() - b.float()).square().sum(-1)
    return found


def gradients(
    model: TransformersModel,
    ids: Ids,
    sites: Iterable[Site],
    measure: Callable[[Logits], Scalar],
    kind: torch.dtype | None = None,
    backend: Any = None,
) -> dict[Site, Float[Tensor, "batch seq d_in"]] | None:
    """Gradients at sites of a number computed from the logits; the graph begins at the first site. None without one."""
    ordered, layers = sorted(sites, key=lambda s: s.order), model.model.layers
    plain, put, output, sent, weight = _plain(ordered), there.put, there.output, there.sent, there.norm_weight
    with torch.enable_grad(), model.trace(input_ids=ids, use_cache=False, backend=backend):
        points = []
        for _, (layer, part) in plain:
            leaf = put(layers[layer], part, lambda x, _: x.detach().requires_grad_(True)) if not points else None
            points.append(output(layers[layer], part) if leaf is None else leaf)
        total = measure(model.output.logits)
        grads = [] if total.grad_fn is None else torch.autograd.grad(total, points, allow_unused=True)
        found = save([])
        for (_, (layer, part)), g in zip(plain, grads):
            g = g if g is None or part != "TC" else g * weight(layers[layer])
            found.append(g if g is None else sent(g, None, kind))
    return dict(zip(ordered, found)) if found and all(g is not None for g in found) else None


def lens(model: TransformersModel, x: Float[Tensor, "rows d_in"], neurons: int | None, backend: Any) -> Tensor:
    """Logits that the head makes of vectors in the residual stream, or of neurons' activations of a layer."""
    layers, one = model.model.layers, torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad(), model.trace(input_ids=one, use_cache=False, backend=backend):
        h = model.model.norm.input
        x = x.to(h)
        x = x if neurons is None else layers[neurons].mlp.down_proj(x)
        out = save(model.lm_head(model.model.norm(x)).float())
    return out  # noqa: RET504 (a body cannot return)


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
    layers, put_all, made = model.model.layers, there.put_all, _made(changes)
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
        put_all(layers, made, eps)
        out = save(model.output.logits[:, -1])
    return out  # noqa: RET504


def write(
    model: TransformersModel,
    ids: Ids,
    mask: Mask,
    first: dict[Site, Change],
    later: dict[Site, tuple],
    u: Float[Tensor, "new batch"],
    sampling: tuple[float, float],
    special: Int[Tensor, " special"],
    stops: Int[Tensor, " stops"],
    eps: float,
    backend: Any = None,
) -> list[Int[Tensor, " batch"]]:
    """The tokens of a whole generation, at most len(u) of each row, as `Generation` chooses them step by step."""
    layers, config, (temperature, top_p) = model.model.layers, model.config, sampling
    put_all, of_new, drawn, made = there.put_all, there.of_new, there.drawn, _made(first)
    edits, count = _made(later), len(u)
    with torch.no_grad(), model.session(backend=backend):
        written = save([])
        cache, text = DynamicCache(config=config), ids
        over = torch.zeros(len(ids), dtype=torch.bool)
        for index in range(count):
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -text.shape[1] :]
            with model.trace(
                input_ids=text,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ):
                put_all(layers, made, eps)
                logits = model.output.logits[:, -1]
            newest = drawn(logits, u[index], temperature, top_p).cpu()
            newest = torch.where(over, -1, newest)
            over = over | torch.isin(newest, stops)
            written.append(newest)
            if bool(over.all()):
                break
            text = newest.clamp(min=0)[:, None]
            made = of_new(edits, ~torch.isin(text[:, 0], special))
            mask = torch.cat([mask, torch.ones_like(text, dtype=torch.bool)], 1)
    return written


def _plain(sites: Iterable[Site]) -> list[tuple[str, tuple[int, str]]]:
    """(name, (layer, part)) of sites, in the order in which a model computes them, as they can travel."""
    return [(str(s), (s.layer, s.part)) for s in sorted(set(sites), key=lambda s: s.order)]


def _made(changes: dict[Site, Any]) -> dict[tuple[int, str], Any]:
    return {(s.layer, s.part): change for s, change in changes.items()}
