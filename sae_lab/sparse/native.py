"""The CPU backend: the numba kernels behind functions of tensors, one call at a time."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numba
import torch
from torch import Tensor

from . import choosing, kernels, tiles
from .kernels import PARTS
from .reference import product as plain_product
from .scratch import note, scratch
from .tile import BREADTH, ROWS, STEP

if TYPE_CHECKING:
    from .coarse import Coarse

INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
USUAL = 256  # hits per token for which there is room at once; for more, they are looked for again
FEW = 64  # tokens for whom there is room for all

_lock = threading.RLock()  # numba's fallback threading layer aborts the process when two threads call kernels


def run(kernel, *args):
    """Calls a kernel alone, on as many threads as torch uses."""
    with _lock:
        wanted = torch.get_num_threads()
        numba.set_num_threads(_threads())
        if torch.get_num_threads() != wanted:  # numba starts its pool on first use, and libgomp's number is shared
            torch.set_num_threads(wanted)
        return kernel(*(a.detach().contiguous().numpy() if isinstance(a, Tensor) else a for a in args))


def _threads() -> int:
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def product(rows: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """rows @ W.T + b; in float32 by oneDNN, which takes 0.7 of the time of MKL where the weights do not fit a cache."""
    if rows.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return plain_product(rows, W, b)
    out = torch.ops.mkldnn._linear_pointwise(rows, W, b, "none", [], "")
    note(out.nbytes)
    return out


def dots(start: Tensor, latent: Tensor, rows: Tensor, W: Tensor) -> Tensor:
    out = W.new_empty(len(latent))
    run(kernels.dots, start, latent, rows, W, out)
    return out


def sums(start: Tensor, latent: Tensor, value: Tensor, W: Tensor) -> Tensor:
    out = scratch((len(start) - 1, W.shape[1]), W.dtype)
    run(kernels.sums, start, latent, value, W, out)
    return out


def totals(start: Tensor, value: Tensor) -> Tensor:
    out = value.new_empty(len(start) - 1)
    run(kernels.totals, start, value, out)
    return out


def combined(per_latent: Tensor, W: Tensor) -> Tensor:
    every = torch.arange(len(W), dtype=torch.int32)
    return sums(torch.arange(PARTS + 1) * len(W) // PARTS, every, per_latent, W).sum(0)


def transpose(start: Tensor, latent: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(map(torch.from_numpy, run(kernels.transpose, start, latent, d_sae)))


def largest(score: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    if score.numel() and not (score[0].sum() + score[:, 0].sum()).isfinite():  # a NaN in x fills a row, in W a column
        score = _positive_nans(score)
    lanes = min(max(64, 1 << (8 * k - 1).bit_length()), score.shape[1])  # in which to look through a row
    out, value, count = _room(len(score), k, score.dtype)
    run(choosing.select_rows, _bits(score.contiguous()), k, lanes, out, _bits(value), count)
    return _filled(out, count, value)


def _room(tok: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Room for latents, scores and counts."""
    return torch.empty(tok, k, dtype=torch.int32), torch.empty(tok, k, dtype=dtype), torch.empty(tok).long()


def _filled(out: Tensor, count: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first count[t] of each row."""
    if bool((count == out.shape[1]).all()):
        return out.ravel(), count, value.ravel()
    there = torch.arange(out.shape[1]) < count[:, None]
    return out[there], count, value[there]


def _positive_nans(score: Tensor) -> Tensor:
    """As integers, negative NaNs would be small."""
    return torch.where(score.isnan(), torch.nan, score)


def _bits(t: Tensor) -> Tensor:
    """Floats seen as integers: for positive ones the order is the same."""
    return t.view(INTEGER[t.dtype])


def keep_largest(score: Tensor, k: int) -> Tensor:
    if score.numel() and not (score[0].sum() + score[:, 0].sum()).isfinite():
        score = _positive_nans(score)
    out = scratch(tuple(score.shape), score.dtype)
    run(choosing.keep_largest, _bits(score.contiguous()), k, _bits(out))
    return out


def columns(a: Tensor, index: Tensor, out: Tensor) -> None:
    run(choosing.columns, _bits(a), index, _bits(out))


def quantise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tok, n = rows.shape
    wide = -(-n // STEP) * STEP
    code = scratch((tok + ROWS, wide), torch.int8)[:tok]  # a tile reads rows beyond the last
    total = torch.empty(tok, dtype=torch.int32)
    scale, norm, lost = (rows.new_empty(tok) for _ in range(3))
    run(choosing.quantise, rows, code, total, scale, norm, lost)
    return code[:, :n], total, scale, norm, lost


def panels(code: Tensor) -> Tensor:
    """Codes of latents as `tiles` read them."""
    n, wide = len(code), code.stride(0)
    whole = code.as_strided((n, wide), (wide, 1)).view(torch.int32)
    out = scratch((-(-n // BREADTH), whole.shape[1], BREADTH), torch.int32)
    run(tiles.panels, whole, out)
    return out


def coarse_dense(of: "Coarse", tokens: slice) -> Tensor:
    out = scratch((tokens.stop - tokens.start, of.d_sae), torch.bfloat16)
    run(tiles.dense, _operand(of), tokens.start, _bounds(len(out)), _bits(out))
    return out


def coarse_largest(
    of: "Coarse", tokens: slice, k: int, index: Tensor, kept: Tensor, boost: "Coarse | None" = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`largest` of numbers that never exist together; `kept` takes those of the latents `index`."""
    tok, d_sae = tokens.stop - tokens.start, of.d_sae
    out, value, count = _room(tok, k, torch.float32)
    product, room = (_operand(of), _operand(boost or of), boost is not None), max(128, 3 * k)
    bounds, kept = _bounds(tok), _bits(kept)
    run(tiles.largest, *product, tokens.start, bounds, k, room, d_sae, out, value, count, index, kept)
    return _filled(out, count, value)


def coarse_above(of: "Coarse", tokens: slice, floor: Tensor, index: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    """`above` of numbers that never exist together; `kept` takes those of the latents `index`."""
    operand, kept = _operand(of, -torch.inf, floor), _bits(kept)
    apart = (_threads(), tiles.TOKENS, of.d_sae + 16)  # rows begin in other sets of a cache
    near, height = scratch(apart, torch.int32), scratch(apart, torch.float32)

    def find(bounds, *out):
        out[-2].zero_()
        run(tiles.above, operand, tokens.start, bounds, of.d_sae, near, height, *out, index, kept)

    return _found_above(find, tokens.stop - tokens.start, floor)


def above(score: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    numbers = _bits(score.contiguous()) if score.dtype == torch.bfloat16 else score

    def find(bounds, *out):
        run(choosing.find_above, numbers, floor, bounds, *out)

    return _found_above(find, len(score), floor)


def _found_above(find: Callable, tok: int, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `find` finds, one row after another. It is asked again where there was too little room."""
    bounds = _bounds(tok)
    room = len(floor) if tok <= FEW else min(len(floor), USUAL)
    place, count, found = bounds * room, *(torch.empty(n, dtype=torch.long) for n in (tok, PARTS))
    while True:
        latent, value = scratch((int(place[-1]),), torch.int32), scratch((int(place[-1]),), floor.dtype)
        find(bounds, place, latent, value, count, found)
        if bool((found <= place.diff()).all()):
            break
        place = torch.cat([found.new_zeros(1), found.cumsum(0)])
    out = torch.empty(int(found.sum()), dtype=torch.int32), torch.empty(int(found.sum()), dtype=floor.dtype)
    run(choosing.pack, place, found, latent, value, *out)
    return out[0], count, out[1]


def _bounds(tok: int) -> Tensor:
    """Tokens cut into PARTS shares of whole tiles."""
    return (torch.arange(PARTS + 1) * -(-tok // ROWS) // PARTS * ROWS).clamp(max=tok)


def _operand(of: "Coarse", least: float = 0.0, floor: Tensor | None = None) -> tuple:
    """A coarse product as its kernels take it: addresses of codes; then numbers per token and per latent.

    `least`: the floor of each token; `floor`: that of each latent, if there is one.
    """
    x, panel = of.x.code, of.panels
    token = torch.zeros(5, len(of.x.scale) + ROWS)
    latent = torch.zeros(5, panel.shape[0] * BREADTH)
    shift = tiles.MIDDLE * of.x.total
    for to, a in zip(token, (of.x.scale, of.reach, of.blur, torch.tensor(least), shift.view(torch.float32))):
        to[: len(of.x.scale)] = a
    for to, a in zip(latent, (of.W.scale, of.W.norm, of.W.lost, least if floor is None else floor, of.bias)):
        to[: of.d_sae] = a
    return x.data_ptr(), x.stride(0), panel.data_ptr(), panel.shape[1], token.numpy(), latent.numpy()


def nth_largest(score: Tensor, n: int) -> Tensor:
    bits = _bits((score if score.sum().isfinite() else _positive_nans(score)).contiguous())
    return torch.tensor(run(choosing.kth_largest, bits.view(-1), n), dtype=bits.dtype).view(score.dtype)


def prune(start: Tensor, score: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    score = score if score.sum().isfinite() else _positive_nans(score)
    keep, floor = torch.empty(len(score), dtype=torch.bool), score.new_empty(len(quota))
    run(choosing.prune, start, _bits(score), quota, keep, _bits(floor))
    return keep, floor.masked_fill_(quota == 0, torch.inf)


def reaches(start: Tensor, exact: Tensor, score: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = exact.new_empty(3, len(start) - 1)
    run(choosing.reaches, start, exact, score, keep, out)
    return tuple(out)


def compact(start: Tensor, latent: Tensor, value: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.empty(len(start) - 1, dtype=torch.long)
    out, kept = torch.empty_like(latent), torch.empty_like(value)
    n = run(kernels.compact, start, keep, latent, value, count, out, kept)
    return out[:n], count, kept[:n]


def adam_rows(W, grad, m, v, *, scale, lr, betas, eps, step, unit) -> None:
    run(kernels.adam_rows, W, grad, m, v, scale, lr, *betas, eps, step, unit)
