"""A LlamaForCausalLM that trains fast on a CPU: causal attention in blocks, and a head that never holds all logits.

On two cores with AVX512-BF16 the library's fused attention takes half of a step. The same products over blocks of 128
queries and the keys before them halve that, because the scores of a block stay in the cache.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

BLOCK = 128  # queries per block
ROWS = 4  # rows of text per block
CHUNK = 1024  # tokens whose logits exist at one time
IGNORE = -100  # a target that is not learned from

Heads = Float[Tensor, "batch head seq d_head"]
Queries = Float[Tensor, "batch head block d_head"]


def _probabilities(q: Queries, k: Heads, start: int, future: Tensor) -> Float[Tensor, "batch head block keys"]:
    size = q.shape[2]
    scores = q @ k[:, :, : start + size].transpose(-1, -2)
    scores[..., start:] += future[:size, :size]
    return torch.softmax(scores, -1)


def _future(like: Tensor) -> Tensor:
    return torch.full((BLOCK, BLOCK), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _blocks(q: Heads):
    for b in range(0, q.shape[0], ROWS):
        for t in range(0, q.shape[2], BLOCK):
            yield slice(b, b + ROWS), slice(t, t + BLOCK)


@torch.library.custom_op(
    "sae_lab::causal_attention", mutates_args=(), schema="(Tensor q, Tensor k, Tensor v) -> Tensor"
)
def causal_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Causal attention of scaled queries, with as many key heads as query heads."""
    out, future = torch.empty_like(q), _future(q)
    for rows, block in _blocks(q):
        p = _probabilities(q[rows, :, block], k[rows], block.start, future)
        out[rows, :, block] = p @ v[rows, :, : p.shape[-1]]
    return out


@torch.library.custom_op(
    "sae_lab::causal_attention_back",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor grad) -> (Tensor, Tensor, Tensor)",
)
def causal_attention_back(q: Heads, k: Heads, v: Heads, grad: Heads) -> tuple[Heads, Heads, Heads]:
    """Gradients of `causal_attention` with respect to q, k and v; the probabilities are computed again."""
    dq, dk, dv, future = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), _future(q)
    for rows, block in _blocks(q):
        p = _probabilities(q[rows, :, block], k[rows], block.start, future)
        keys, g = slice(0, p.shape[-1]), grad[rows, :, block]
        dv[rows, :, keys] += p.transpose(-1, -2) @ g
        dp = g @ v[rows, :, keys].transpose(-1, -2)
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
        dq[rows, :, block] = ds @ k[rows, :, keys]
        dk[rows, :, keys] += ds.transpose(-1, -2) @ q[rows, :, block]
    return dq, dk, dv


@causal_attention.register_fake
def _(q, k, v):
    return torch.empty_like(q)


@causal_attention_back.register_fake
def _(q, k, v, grad):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _backward(ctx, grad):
    return causal_attention_back(*ctx.saved_tensors, grad.contiguous())


causal_attention.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def _interface(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """The form in which transformers calls an attention function."""
    groups = module.num_key_value_groups
    dtype = value.dtype
    query = (query * scaling).to(dtype).contiguous()
    key = key.to(dtype).repeat_interleave(groups, 1)
    value = value.repeat_interleave(groups, 1)
    if query.is_cuda:
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    else:
        out = causal_attention(query, key, value)
    return out.transpose(1, 2), None


AttentionInterface.register("sae_lab_blocks", _interface)


def llama(
    vocab: int, d_model: int, layers: int, heads: int, kv_heads: int, mlp: int, seed: int, ids: dict
) -> nn.Module:
    """A fresh LlamaForCausalLM; `ids` holds pad_token_id, bos_token_id and eos_token_id."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=d_model,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=d_model // heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attn_implementation="sae_lab_blocks",
        initializer_range=0.02,
        **ids,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.div_((2 * layers) ** 0.5)
    return model


def _chunk_loss(logits: Float[Tensor, "tok vocab"], target: Int[Tensor, " tok"], emphasis: Float[Tensor, " tok"]):
    """Summed cross-entropy of one chunk and its gradient at the logits; targets under 0 count nothing."""
    wide = logits.float()
    learned = (target >= 0).float() * emphasis
    place = target.clamp(min=0)[:, None]
    top = torch.logsumexp(wide, -1, keepdim=True)
    loss = ((top - wide.gather(1, place)).squeeze(1) * learned).sum()
    hit = torch.arange(wide.shape[1], device=wide.device)[None] == place
    grad = (torch.exp(wide - top) - hit.float()) * learned[:, None]
    return loss, grad.to(logits.dtype)


class HeadLoss(torch.autograd.Function):
    """Cross-entropy of `x @ W.T`, each target's times its emphasis, over the number of learned targets.

    Its gradients are found on the way forward.
    """

    chunk_loss = staticmethod(_chunk_loss)

    @staticmethod
    def forward(ctx, x, weight, target, emphasis):
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        narrow, total = weight.to(x.dtype), torch.zeros((), device=x.device)
        for start in range(0, x.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            loss, grad = HeadLoss.chunk_loss(x[part] @ narrow.T, target[part], emphasis[part])
            total += loss
            dx[part] = grad @ narrow
            dw += grad.T @ x[part]
        count = (target >= 0).sum().clamp(min=1)
        ctx.save_for_backward(dx / count, dw / count)
        return total / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw = ctx.saved_tensors
        return dx * grad, dw * grad, None, None


class Net:
    """The model with its compiled forward: `loss(ids, target, emphasis)`."""

    def __init__(self, model: nn.Module, compiled: bool):
        self.model, self.body = model, model.model
        if compiled:
            self.body = torch.compile(model.model, dynamic=False)
            HeadLoss.chunk_loss = staticmethod(torch.compile(_chunk_loss, dynamic=False))

    def loss(
        self,
        ids: Int[Tensor, "batch seq"],
        target: Int[Tensor, "batch seq"],
        emphasis: Float[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over the targets that are not under 0, each times its emphasis (1), in bf16 products."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            x = self.body(input_ids=ids, use_cache=False).last_hidden_state
        x = x.reshape(-1, x.shape[-1]).bfloat16()
        emphasis = torch.ones_like(target, dtype=torch.float32) if emphasis is None else emphasis
        return HeadLoss.apply(x, self.model.lm_head.weight, target.reshape(-1), emphasis.reshape(-1))
