"""A dense corner of a sparse batch: few latents of which many fire, as AuxK's dead ones do.

Over these latents alone dense products cost less than nonzeros do, above all in bf16. The gradients of a parameter's
rows are sparse tensors: autograd adds them, in place, to the gradient that the other latents give. Weights that were
computed from something get dense ones, since few operations know sparse ones.
"""

import torch
from torch import Tensor

from ..shapes import LatentMask, Rows, Weights
from .backends import backend_of
from .preacts import PreActs
from .probe import half_is_quick

# share of the corner that fires, by precision; in float32 it is 0.4 on Zen 4, 0.1 on Sapphire Rapids: one between
DENSE_ABOVE = {torch.bfloat16: 0.1}
OTHERS = 0.25


def corner(pre: PreActs, W_dec: Weights, among: LatentMask, k: int) -> Rows | None:
    """The k largest positive of some latents, decoded; None where so few fire that nonzeros are cheaper.

    Products are made in the precision of the choice; a coarse one's in bf16 where that is quick. Numbers that the first
    product gave in 8 bits (`encode(again=)`) serve as they are: what is kept here is as exact as what it was chosen by.
    """
    n, dtype = int(among.sum()), pre.numbers
    if dtype == torch.bfloat16 and not half_is_quick(pre.centred.device.type, pre.centred.shape[1]):
        dtype = pre.centred.dtype
    if not n or k <= DENSE_ABOVE.get(dtype, OTHERS) * n:
        return None
    index = among.nonzero()[:, 0]
    with torch.no_grad():
        z = backend_of(pre.centred).keep_largest(pre.dense_among(among, index), min(k, n))
    return _Corner.apply(*pre.inputs, W_dec, pre.centred, index, z.to(dtype))


class _Corner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W_enc, b_enc, centre, W_dec, centred, index, z):
        few = W_dec[index].to(z.dtype)
        ctx.leaves = W_enc.is_leaf, W_dec.is_leaf
        ctx.save_for_backward(centred, W_enc, few, index, z)
        return backend_of(z).product(z, few.T, None).to(centred.dtype)

    @staticmethod
    def backward(ctx, g):
        (centred, W_enc, few, index, z), (x, W, b, c, W_dec, *_) = ctx.saved_tensors, ctx.needs_input_grad
        g = g.to(z.dtype)
        q = backend_of(g).product(g, few, None)
        q = torch.ops.aten.threshold_backward(q, z, 0)  # nothing passes where nothing fired
        total = q.sum(0).to(centred.dtype) if b or c else None  # twelve times as quick as sum(0, dtype=float32)
        return (
            (q @ W_enc[index].to(q.dtype)).to(centred.dtype) if x else None,
            _rows(W_enc, index, q.T @ centred.to(q.dtype), ctx.leaves[0]) if W else None,
            centred.new_zeros(len(W_enc)).index_copy(0, index, total) if b else None,
            -(total @ W_enc[index]) if c else None,
            _rows(W_enc, index, z.T @ g, ctx.leaves[1]) if W_dec else None,
            None,
            None,
            None,
        )


def _rows(W: Tensor, index: Tensor, value: Tensor, leaf: bool) -> Tensor:
    """A tensor like W that is zero but for some rows; sparse for a leaf."""
    if not leaf:
        return torch.zeros_like(W).index_copy_(0, index, value.to(W.dtype))
    return torch.sparse_coo_tensor(index[None], value.to(W.dtype), W.shape, is_coalesced=True, check_invariants=False)
