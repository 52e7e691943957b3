"""What runs where the model is, here or on a server: reading and writing its sites, and numbers of its predictions.

Unusual here: these functions travel by their source to a server that has torch and nnsight alone. So they take a site
as (layer, part), have no annotations and use nothing else of this package. Those that touch a layer are called inside a
trace, in the order in which the model computes.
"""

import torch
import torch.nn.functional as F

PARTS = ("A", "TC", "N", "M", "R")  # as in `sites`


def mlp_norm(layer):
    """The normalisation in front of a layer's MLP: Gemma 2 and later name it differently from Llama."""
    return getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)


def norm_weight(layer):
    """What the normalisation in front of a layer's MLP multiplies by; Gemma adds 1."""
    norm = mlp_norm(layer)._module
    return 1.0 + norm.weight if type(norm).__name__.startswith("Gemma") else norm.weight


def normalised(m, eps):
    """Scaled to unit root mean square along the last axis, computed in float32 as Llama does, without a weight."""
    y = m.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(m.dtype)


def get(layers, site, eps):
    """What stands at a site."""
    layer, part = layers[site[0]], site[1]
    if part == "TC":
        return normalised(mlp_norm(layer).input.detach(), eps)
    return output(layer, part).detach()


def sent(x, keep, kind):
    """The places of x that are kept, [rows, d_in], or all; in the precision in which they are sent, or as they are."""
    x = x if keep is None else x[keep.to(x.device)]
    return x if kind is None else x.to(kind)


def place(layer, part):
    """The module at which a part stands, and on which side of it; a TC where its gradient is taken."""
    module = {"R": layer, "A": layer.self_attn, "N": layer.mlp.down_proj}.get(part, layer.mlp)
    return module, "input" if part in ("N", "TC") else "output"


def output(layer, part):
    """What stands at a part, a TC's being the MLP's input."""
    out = getattr(*place(layer, part))
    return out[0] if isinstance(out, tuple) else out


def put(layer, part, change):
    """What stands at a part once it is changed."""
    module, side = place(layer, part)
    out = getattr(module, side)
    x = out[0] if isinstance(out, tuple) else out
    new = change(x, x)
    setattr(module, side, (new, *out[1:]) if isinstance(out, tuple) else new)
    return new


def put_all(layers, changes, eps):
    """Every change at its place, by (layer, part); a TC is read before its layer's neurons are, and written after."""
    read, written = {}, {(i, "M" if part == "TC" else part) for i, part in changes}
    for i, part in sorted({*changes, *written}, key=lambda site: (site[0], PARTS.index(site[1]))):
        layer, tc = layers[i], (i, "TC")
        if part == "TC":
            read[tc] = normalised(mlp_norm(layer).input, eps)
        elif part == "M" and tc in changes:
            layer.mlp.output = changes[tc](read[tc], layer.mlp.output)
        if part != "TC" and (i, part) in changes:
            put(layer, part, changes[i, part])


def held(values, where):
    """A change that puts rows, [rows, d_in], at the places in `where`, in their order."""

    def change(x, old):
        new = old.clone()
        new[where.to(old.device)] = values.to(old)
        return new

    return change


def added(rows, vectors, masks, amounts):
    """A change that adds to rows: `amounts`, [edits, 1 or seq], times `vectors` at the places in `masks`."""

    def change(x, old):
        exact = torch.promote_types(old.dtype, torch.float32)
        much, along = (a.to(old.device, exact) for a in (amounts, vectors))
        more = torch.where(masks.to(old.device)[..., None], (much[..., None] * along[:, None]).to(old.dtype), 0.0)
        return old.clone().index_add_(0, rows.to(old.device), more)

    return change


def of_new(edits, allowed):
    """The changes, by (layer, part), of `edits`, (rows, vectors, masks, amounts) each, where new tokens are edited."""
    return {
        site: added(rows, vectors, allowed[rows][:, None], much) for site, (rows, vectors, _, much) in edits.items()
    }


def ce(logits, ids):
    """Cross-entropy in nats of the token that follows each place; 0 at a row's last place."""
    one = [F.cross_entropy(row[:-1].float(), nxt[1:], reduction="none") for row, nxt in zip(logits, ids)]
    return F.pad(torch.stack(one), (0, 1))


def kl(clean, spliced):
    """KL(clean || spliced) in nats at each place."""
    rows = []
    for p, q in zip(clean, spliced):  # a row at a time: vocabularies are wide
        p, q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        rows.append((p.exp() * (p - q)).sum(-1))
    return torch.stack(rows)


def ce_at(ids, places):
    """A function of the logits: their cross-entropy, summed over places."""
    return lambda logits: ce(logits, ids.to(logits.device))[places.to(logits.device)].sum()


def logit_at(last, pair):
    """A function of the logits: that of a token at place `last` of each row, summed; less another's if there is one."""

    def of(logits):
        rows, at = torch.arange(len(logits), device=logits.device), last.to(logits.device)
        return sum(sign * logits[rows, at, i].float().sum() for sign, i in zip((1.0, -1.0), pair))

    return of


def drawn(logits, u, temperature, top_p):
    """The next tokens: the likeliest at temperature 0, else what numbers in [0, 1), one a row, say."""
    if temperature == 0:
        return logits.argmax(-1)
    u = u.to(logits.device)[:, None]
    p = (logits.float() / temperature).softmax(-1)
    if top_p == 1:
        reach = p.cumsum(-1)
        return torch.searchsorted(reach, u * reach[:, -1:], right=True).clamp(max=p.shape[1] - 1)[:, 0]
    p, order = p.sort(dim=-1, descending=True, stable=True)
    total = p.cumsum(-1)
    kept = torch.where(total - p < top_p, p, 0.0)
    reach = kept.cumsum(-1)
    found = torch.searchsorted(reach, u * reach[:, -1:], right=True)
    last = (kept > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(found, last))[:, 0]
