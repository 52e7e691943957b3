"""The loops: numba on numpy views. Each output row is written by one thread, in one order.

So a result depends neither on the number of threads nor on the run. `fastmath` allows reassociation (vector sums) and
FMA but not "no NaN": a NaN must arrive in the loss, not vanish in a comparison. All kernels live in this one file
because numba's cache is invalidated by the file of the kernel alone.
"""

from typing import no_type_check

import numba
import numpy as np

PARTS = 64  # more parts than threads, of equal work: a heavy row does not hold up the rest


def jit(parallel=False):
    """Compiled once and kept on disk; where no place for the cache can be written, compiled in every process."""

    def compiled(fn):
        options = {
            "nogil": True,
            "parallel": parallel,
            "error_model": "numpy",
            "fastmath": {"reassoc", "contract", "nsz"},
        }
        try:
            return numba.njit(cache=True, **options)(fn)
        except (RuntimeError, OSError):
            return numba.njit(cache=False, **options)(fn)

    return compiled


@jit()
@no_type_check
def cut(start, part):
    """First row of `part` when rows and nonzeros together are cut into PARTS equal shares."""
    rows = start.size - 1
    want, lo, hi = (start[rows] + rows) * part // PARTS, 0, rows
    while lo < hi:
        mid = (lo + hi) // 2
        if start[mid] + mid < want:
            lo = mid + 1
        else:
            hi = mid
    return lo


@jit(parallel=True)
@no_type_check
def dots(start, col, rows, W, out):
    """out[p] = <rows[t], W[col[p]]> for each nonzero p of row t; four at a time."""
    for part in numba.prange(PARTS):
        for t in range(cut(start, part), cut(start, part + 1)):
            x, p, end, zero = rows[t], start[t], start[t + 1], out.dtype.type(0)
            while p + 4 <= end:
                i, j, k, l = col[p], col[p + 1], col[p + 2], col[p + 3]
                a, b, c, d = zero, zero, zero, zero
                for n in range(W.shape[1]):
                    a += x[n] * W[i, n]
                    b += x[n] * W[j, n]
                    c += x[n] * W[k, n]
                    d += x[n] * W[l, n]
                out[p], out[p + 1], out[p + 2], out[p + 3] = a, b, c, d
                p += 4
            while p < end:
                i, a = col[p], zero
                for n in range(W.shape[1]):
                    a += x[n] * W[i, n]
                out[p] = a
                p += 1


@jit(parallel=True)
@no_type_check
def sums(start, col, value, W, out):
    """out[t] = sum over the nonzeros p of row t of value[p] * W[col[p]]; four at a time."""
    for part in numba.prange(PARTS):
        for t in range(cut(start, part), cut(start, part + 1)):
            out[t] = 0
            p, end = start[t], start[t + 1]
            while p + 4 <= end:
                a, b, c, d = value[p], value[p + 1], value[p + 2], value[p + 3]
                i, j, k, l = col[p], col[p + 1], col[p + 2], col[p + 3]
                for n in range(W.shape[1]):
                    out[t, n] += (a * W[i, n] + b * W[j, n]) + (c * W[k, n] + d * W[l, n])
                p += 4
            while p < end:
                a, i = value[p], col[p]
                for n in range(W.shape[1]):
                    out[t, n] += a * W[i, n]
                p += 1


@jit()
@no_type_check
def totals(start, value, out):
    """out[r] = sum of value[start[r]:start[r + 1]]"""
    for r in range(start.size - 1):
        s = value.dtype.type(0)
        for p in range(start[r], start[r + 1]):
            s += value[p]
        out[r] = s


@jit()
@no_type_check
def transpose(start, col, n_cols):
    """Counting sort by column, stable: rows ascend within a column. `order` maps back to the old places."""
    first = np.zeros(n_cols + 1, np.int64)
    for r in col:
        first[r + 1] += 1
    first = np.cumsum(first)
    fill, row, order = first[:-1].copy(), np.empty(col.size, np.int32), np.empty(col.size, np.int32)
    for t in range(start.size - 1):
        for p in range(start[t], start[t + 1]):
            q = fill[col[p]]
            row[q], order[q], fill[col[p]] = t, p, q + 1
    return first, row, order


@jit()
@no_type_check
def kth_largest(a, k):
    """By bisection on the value: counting vectorises, and unlike np.partition nothing is copied (5-7x faster here)."""
    lo = hi = a.dtype.type(0)
    for i in range(a.size):
        hi = max(hi, a[i])
    while lo < hi:
        mid, n = a.dtype.type(lo + (hi - lo + 1) // 2), np.int32(0)
        for i in range(a.size):
            n += np.int32(1) if a[i] >= mid else np.int32(0)
        if n >= k:
            lo = mid
        else:
            hi = a.dtype.type(mid - 1)
    return lo


@jit()
@no_type_check
def select(row, k, best, lane, found, near, out, value):
    """Columns and values of the k largest positive of `row`, by column; ties go to the lowest. Returns how many.

    `row` is floats seen as integers: for positive numbers the order is the same. `best` takes the largest of each
    lane (column modulo lanes); the k-th of those bounds the answer from below, and only lanes that reach it are read
    again. Inner loops run over slices: an index that might be negative would keep them from being vectorised.
    """
    lanes, k = best.size, min(k, row.size)
    if k == 0:
        return 0
    best[:] = 0
    for b in range(0, row.size, lanes):
        piece = row[b : b + lanes]
        for i in range(piece.size):
            best[i] = max(best[i], piece[i])
    least = max(kth_largest(best, k), row.dtype.type(1)) if k <= lanes else row.dtype.type(1)
    n = m = 0
    for i in range(lanes):
        if best[i] >= least:
            lane[n] = i
            n += 1
    for b in range(0, row.size, lanes):
        for i in lane[:n]:
            if b + i < row.size and row[b + i] >= least:
                found[m], near[m] = b + i, row[b + i]
                m += 1
    kth, ties = least, m
    if m > k:
        kth, ties = kth_largest(near[:m], k), k
        for q in range(m):
            ties -= near[q] > kth
    got = 0
    for q in range(m):
        if near[q] > kth or (near[q] == kth and ties > 0):
            ties -= near[q] == kth
            out[got], value[got] = found[q], near[q]
            got += 1
    return got


@jit(parallel=True)
@no_type_check
def select_rows(key, k, lanes, out, value, count):
    """The k largest positive of every row, into out[t, :count[t]] and value."""
    tok, n = key.shape
    for part in numba.prange(PARTS):
        best, near = np.empty(lanes, key.dtype), np.empty(n, key.dtype)
        lane, found = np.empty(lanes, np.int32), np.empty(n, np.int32)
        for t in range(tok * part // PARTS, tok * (part + 1) // PARTS):
            count[t] = select(key[t], k, best, lane, found, near, out[t], value[t])


@jit(parallel=True)
@no_type_check
def columns(a, index, out):
    """Some columns of every row."""
    for part in numba.prange(PARTS):
        for t in range(len(a) * part // PARTS, len(a) * (part + 1) // PARTS):
            row, to = a[t], out[t]
            for i in range(index.size):
                to[i] = row[index[i]]


@jit(parallel=True)
@no_type_check
def prune(start, key, quota, keep, floor):
    """Marks each group's `quota[g]` largest positive keys, the first of equals; `floor[g]`: a later key must exceed it.

    Group g is key[start[g]:start[g + 1]]; keys are floats seen as integers.
    """
    zero, one = key.dtype.type(0), key.dtype.type(1)
    for part in numba.prange(PARTS):
        for g in range(cut(start, part), cut(start, part + 1)):
            group, kept = key[start[g] : start[g + 1]], keep[start[g] : start[g + 1]]
            q = quota[g]
            kth = max(kth_largest(group, q), one) if 0 < q <= group.size else one
            ties = q
            for i in range(group.size):
                ties -= group[i] > kth
            for i in range(group.size):
                tied = group[i] == kth and ties > 0
                ties -= tied
                kept[i] = q > 0 and (group[i] > kth or tied)
            floor[g] = kth if ties == 0 and q > 0 else zero


@jit(parallel=True)
@no_type_check
def count_kept(start, keep, count):
    """How many of each row are marked."""
    for part in numba.prange(PARTS):
        for t in range(cut(start, part), cut(start, part + 1)):
            n = 0
            for p in range(start[t], start[t + 1]):
                n += keep[p]
            count[t] = n


@jit(parallel=True)
@no_type_check
def fill_kept(start, keep, col, value, new, out, kept):
    """The marked columns and values of each row, from place new[t] on."""
    for part in numba.prange(PARTS):
        for t in range(cut(start, part), cut(start, part + 1)):
            q = new[t]
            for p in range(start[t], start[t + 1]):
                if keep[p]:
                    out[q], kept[q] = col[p], value[p]
                    q += 1


@jit()
@no_type_check
def widen(piece, half, bits, out):
    """out = piece as floats; `half`: they are bf16 seen as int16."""
    if half:
        as_float = bits.view(np.float32)
        for i in range(piece.size):
            bits[i] = np.int32(piece[i]) << np.int32(16)
        for i in range(piece.size):
            out[i] = as_float[i]
    else:
        for i in range(piece.size):
            out[i] = piece[i]


@jit(parallel=True)
@no_type_check
def count_above(score, half, floor, count):
    """How many of each row are not at or below the floor: a NaN counts."""
    tok, n = score.shape
    for part in numba.prange(PARTS):
        bits, wide = np.empty(256, np.int32), np.empty(256, floor.dtype)
        for t in range(tok * part // PARTS, tok * (part + 1) // PARTS):
            hits = np.int32(0)
            for b in range(0, n, 256):
                piece, low = score[t, b : b + 256], floor[b : b + 256]
                widen(piece, half, bits, wide)
                for i in range(piece.size):
                    hits += np.int32(0) if wide[i] <= low[i] else np.int32(1)
            count[t] = hits


@jit(parallel=True)
@no_type_check
def fill_above(score, half, floor, start, latent, value):
    """Which they are, and their values, from place start[t] on."""
    tok, n = score.shape
    for part in numba.prange(PARTS):
        bits, wide = np.empty(256, np.int32), np.empty(256, floor.dtype)
        for t in range(tok * part // PARTS, tok * (part + 1) // PARTS):
            p = start[t]
            for b in range(0, n, 256):
                piece, low = score[t, b : b + 256], floor[b : b + 256]
                widen(piece, half, bits, wide)
                for c in range(0, piece.size, 64):
                    near, under = wide[c : min(c + 64, piece.size)], low[c : c + 64]
                    hits = np.int32(0)
                    for i in range(near.size):
                        hits += np.int32(0) if near[i] <= under[i] else np.int32(1)
                    if hits > 0:  # most stretches have none, and counting is vectorised
                        for i in range(near.size):
                            if not near[i] <= under[i]:
                                latent[p], value[p] = b + c + i, near[i]
                                p += 1


@jit(parallel=True)
@no_type_check
def adam_rows(W, grad, m, v, scale, lr, b1, b2, eps, step, unit):
    """One pass of Adam over W with the gradient times `scale`.

    With `unit`, the gradient along each row is removed first and the row ends at norm 1.
    """
    one, zero, s = W.dtype.type(1), W.dtype.type(0), W.dtype.type(scale)
    fix1, fix2 = W.dtype.type(lr / (1 - b1**step)), W.dtype.type(1 / np.sqrt(1 - b2**step))
    c1, c2, e = W.dtype.type(b1), W.dtype.type(b2), W.dtype.type(eps)
    for r in numba.prange(len(W)):
        along, norm = zero, zero
        if unit:
            for c in range(W.shape[1]):
                along += grad[r, c] * W[r, c]
        for c in range(W.shape[1]):
            g = s * (grad[r, c] - along * W[r, c])
            a = c1 * m[r, c] + (one - c1) * g
            b = c2 * v[r, c] + (one - c2) * g * g
            m[r, c], v[r, c] = a, b
            w = W[r, c] - fix1 * a / (np.sqrt(b) * fix2 + e)
            W[r, c] = w
            norm += w * w
        if unit:
            norm = one / np.sqrt(norm)
            for c in range(W.shape[1]):
                W[r, c] *= norm


@jit(parallel=True)
@no_type_check
def best_cuts(first, token, value, start, concept, positives):
    """(F1, threshold) of each unit's best cut for each concept; 0 and infinity where the two never meet.

    Firings come grouped by unit. F1 can only rise where a hit is added, so only those cuts are looked at, and only at
    the end of equal values: a threshold cannot part them.
    """
    units, concepts = len(first) - 1, len(positives)
    reached, threshold = np.zeros((units, concepts)), np.full((units, concepts), np.inf)
    for unit in numba.prange(units):
        values = value[first[unit] : first[unit + 1]]
        order = np.argsort(-values)
        tokens = token[first[unit] : first[unit + 1]][order]
        hits = np.zeros(concepts, np.int64)
        begin = 0
        while begin < len(order):
            cut, end = values[order[begin]], begin
            while end < len(order) and values[order[end]] == cut:
                for at in range(start[tokens[end]], start[tokens[end] + 1]):
                    hits[concept[at]] += 1
                end += 1
            for i in range(begin, end):
                for at in range(start[tokens[i]], start[tokens[i] + 1]):
                    c = concept[at]
                    found = 2 * hits[c] / (end + positives[c])
                    if found > reached[unit, c]:
                        reached[unit, c], threshold[unit, c] = found, cut
            begin = end
    return reached, threshold
