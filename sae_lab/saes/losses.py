"""Loss terms as plain functions. Each returns a scalar mean over tokens."""

import torch
from torch import Tensor

from ..shapes import Direction, LatentMask, PerLatent, Rows, Scalar, Weights
from ..sparse import Latents, PreActs, corner, decode, mesh, token_mean, tokens, topk, total


class _Energy(torch.autograd.Function):
    """Reads its input once, and once more for the gradient; autograd's own squares and sums write in between."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.tok = tokens(len(x))
        return _squares(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return x * (2 / ctx.tok * g)


def energy(x: Rows) -> Scalar:
    """Squares summed over `d_in`, averaged over tokens."""
    return _Energy.apply(x)


def mse(x_hat: Rows, target: Rows) -> Scalar:
    """Squared error summed over `d_in`, averaged over tokens."""
    return energy(x_hat - target)


def l1(z: Latents, price: Tensor | float = 1.0) -> Scalar:
    """Sum of the latents' absolute values, each times its price (a number per nonzero), averaged over tokens."""
    return per_token(z.value.abs() * price, z.support.tok)


def per_token(value: Tensor, tok: int) -> Scalar:
    """The sum of what nonzeros count for, averaged over tokens, of which `tok` are here."""
    return total(value.sum(), "all") / tokens(tok)


def dead_error(pre: PreActs, W_dec: Weights, residual: Rows, dead: LatentMask, k: int) -> Scalar:
    """MSE of the top-k dead latents at explaining what the live ones missed; zero while nothing is dead.

    Gradient reaches the dead latents only: the residual is a constant and no bias takes part.
    """
    residual = residual.detach()
    k = min(k, int(total(dead.sum(), "latents")))
    if k == 0:
        return residual.new_zeros(())
    explained = corner(pre, W_dec, dead, k) if mesh() is None else None
    if explained is None:
        explained = decode(pre.keep(pre.choose(topk, k, among=dead)).relu(), W_dec)
    return energy(explained.reshape(residual.shape) - residual)


def shortfall_error(pre: PreActs, W_dec: Weights, residual: Rows, short: PerLatent, k: int) -> Scalar:
    """`dead_error` where dead is a matter of degree, 0 (healthy) to 1: an activation counts, and is chosen, as `short`
    times itself.
    """
    residual = residual.detach()
    k = min(k, int((short > 0).sum()))
    if k == 0:
        return residual.new_zeros(())
    z = pre.keep(pre.choose(topk, k, price=short)).relu()
    return energy(decode(z.to(z.value * z.at(short)), W_dec).reshape(residual.shape) - residual)


@torch.no_grad()
def power(x: Rows) -> Scalar:
    """Squared distance from the batch's mean, summed over `d_in`, averaged over tokens."""
    return _squares(x - token_mean(x))


def _squares(x: Tensor) -> Tensor:
    """Rows are added in float64 one after another: the same whatever the number of threads."""
    rows = x.norm(dim=1).double().square()
    return (total(torch.cat([rows.new_zeros(1), rows]).cumsum(0)[-1], "data") / tokens(len(x))).to(x.dtype)


@torch.no_grad()
def geometric_median(x: Rows, rounds: int = 50) -> Direction:
    """The point with the least sum of distances to the rows (Weiszfeld's iteration)."""
    centre = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - centre).norm(dim=1).clamp(min=1e-8)
        centre = (weight @ x) / weight.sum()
    return centre


def ramp(progress: float, share: float) -> float:
    """Grows from 0 to 1 over the first `share` of the run."""
    return 1.0 if progress >= share else progress / share
