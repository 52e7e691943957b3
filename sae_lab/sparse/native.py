"""The CPU backend: the numba kernels behind functions of tensors, one call at a time."""

import threading

import numba
import torch
from torch import Tensor

from . import choosing, kernels
from .kernels import PARTS
from .reference import product as plain_product
from .scratch import note, scratch

INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}

USUAL = 256  # hits per token for which there is room at once; for more, they are looked for again

_lock = threading.RLock()  # numba's fallback threading layer aborts the process when two threads call kernels


def run(kernel, *args):
    """Calls a kernel alone, on as many threads as torch uses."""
    with _lock:
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        if torch.get_num_threads() != threads:  # numba starts its pool on first use, and libgomp's number is shared
            torch.set_num_threads(threads)
        return kernel(*(a.detach().contiguous().numpy() if isinstance(a, Tensor) else a for a in args))


def product(rows: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """rows @ W.T + b; in float32 by oneDNN, which takes 0.7 of the time of MKL where the weights do not fit a cache."""
    if rows.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return plain_product(rows, W, b)
    out = torch.ops.mkldnn._linear_pointwise(rows, W, b, "none", [], "")
    note(out.nbytes)
    return out


def dots(start: Tensor, latent: Tensor, rows: Tensor, W: Tensor) -> Tensor:
    """One number per nonzero: <rows[t], W[latent]>."""
    out = W.new_empty(len(latent))
    run(kernels.dots, start, latent, rows, W, out)
    return out


def sums(start: Tensor, latent: Tensor, value: Tensor, W: Tensor, order: Tensor | None = None) -> Tensor:
    """One row per row of the support: the sum of value * W[latent]; `order` says where the values are."""
    out = scratch((len(start) - 1, W.shape[1]), W.dtype)
    run(kernels.sums, start, latent, order, value, W, out)
    return out


def totals(start: Tensor, value: Tensor, order: Tensor | None = None) -> Tensor:
    """One number per row of the support: the sum of its values; `order` says where they are."""
    out = value.new_empty(len(start) - 1)
    run(kernels.totals, start, order, value, out)
    return out


def transpose(start: Tensor, latent: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts the nonzeros by latent: where each latent starts, the tokens, and the old places."""
    return tuple(map(torch.from_numpy, run(kernels.transpose, start, latent, d_sae)))


def largest(score: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of each token's k largest positive scores, ascending, how many each token has, and the scores."""
    if score.numel() and not (score[0].sum() + score[:, 0].sum()).isfinite():  # a NaN in x fills a row, in W a column
        score = torch.where(score.isnan(), torch.nan, score)  # as integers, negative NaNs would be small
    tok, d_sae = score.shape
    lanes = min(max(64, 1 << (8 * k - 1).bit_length()), d_sae)
    out, value = torch.empty(tok, k, dtype=torch.int32), torch.empty(tok, k, dtype=score.dtype)
    count, integer = torch.empty(tok, dtype=torch.long), INTEGER[score.dtype]
    run(choosing.select_rows, score.contiguous().view(integer), k, lanes, out, value.view(integer), count)
    if bool((count == k).all()):
        return out.ravel(), count, value.ravel()
    there = torch.arange(k) < count[:, None]
    return out[there], count, value[there]


def keep_largest(score: Tensor, k: int) -> Tensor:
    """The k largest positive scores of each token, zeros elsewhere."""
    if score.numel() and not (score[0].sum() + score[:, 0].sum()).isfinite():
        score = torch.where(score.isnan(), torch.nan, score)
    out, integer = scratch(tuple(score.shape), score.dtype), INTEGER[score.dtype]
    run(choosing.keep_largest, score.contiguous().view(integer), k, out.view(integer))
    return out


def columns(a: Tensor, index: Tensor, out: Tensor) -> None:
    """Some columns of `a`, into `out`."""
    integer = INTEGER[a.dtype]
    run(choosing.columns, a.view(integer), index, out.view(integer))


def quantise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in 8 bits: codes, each row's scale and norm, and the norm of what rounding took from it."""
    code = scratch(tuple(rows.shape), torch.int8)
    scale, norm, lost = (rows.new_empty(len(rows)) for _ in range(3))
    run(choosing.quantise, rows, code, scale, norm, lost)
    return code, scale, norm, lost


def to_scale(products: Tensor, by_token, by_latent, bias, reach, norm, blur, lost) -> Tensor:
    """products[t, l] * by_token[t] * by_latent[l] + bias[l] + reach[t] * norm[l] + blur[t] * lost[l], in bf16."""
    out = scratch(tuple(products.shape), torch.bfloat16)
    run(choosing.to_scale, products, by_token, by_latent, bias, reach, norm, blur, lost, out.view(torch.int16))
    return out


def above(score: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of each token's scores over their latent's floor, how many, and the scores (bf16 as float32)."""
    numbers = score.contiguous().view(torch.int16) if score.dtype == torch.bfloat16 else score
    tok, count, found = len(score), torch.empty(len(score), dtype=torch.long), torch.empty(PARTS, dtype=torch.long)
    place = torch.arange(PARTS + 1) * tok // PARTS * min(score.shape[1], USUAL)
    while True:
        latent, value = scratch((int(place[-1]),), torch.int32), scratch((int(place[-1]),), floor.dtype)
        run(choosing.find_above, numbers, floor, place, latent, value, count, found)
        if bool((found <= place.diff()).all()):
            break
        place = torch.cat([found.new_zeros(1), found.cumsum(0)])
    out = torch.empty(int(found.sum()), dtype=torch.int32), torch.empty(int(found.sum()), dtype=floor.dtype)
    run(choosing.pack, place, found, latent, value, *out)
    return out[0], count, out[1]


def nth_largest(score: Tensor, n: int) -> Tensor:
    """The n-th largest of all positive scores; 0 where there are fewer."""
    score = torch.where(score.isnan(), torch.nan, score).contiguous()
    out = run(choosing.kth_largest, score.view(INTEGER[score.dtype]).view(-1), n)
    return torch.tensor(out, dtype=INTEGER[score.dtype]).view(score.dtype)


def prune(start: Tensor, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    """Marks each group's `quota` largest positive scores; the second tensor is what a later one has to exceed."""
    score = torch.where(score.isnan(), torch.nan, score)  # a NaN of either sign sorts above all
    keep, floor = torch.empty(len(score), dtype=torch.bool), score.new_empty(len(quota))
    integer = INTEGER[score.dtype]
    run(choosing.prune, start, score.view(integer), quota, keep, floor.view(integer))
    return keep, floor.masked_fill_(quota == 0, torch.inf)


def compact(start: Tensor, latent: Tensor, value: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The latents that `keep` marks, how many each token has, and their values."""
    count = torch.empty(len(start) - 1, dtype=torch.long)
    run(kernels.count_kept, start, keep, count)
    new = torch.cat([count.new_zeros(1), count.cumsum(0)])
    out, kept = latent.new_empty(int(new[-1])), value.new_empty(int(new[-1]))
    run(kernels.fill_kept, start, keep, latent, value, new, out, kept)
    return out, count, kept


def adam_rows(W, grad, m, v, *, scale, lr, betas, eps, step, unit) -> None:
    """One fused pass of Adam over the rows of W, in place."""
    run(kernels.adam_rows, W, grad, m, v, scale, lr, *betas, eps, step, unit)
