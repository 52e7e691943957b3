"""The loops: numba on numpy views. Each output row is written by one thread, in one order.

So a result depends neither on the number of threads nor on the run. `fastmath` allows reassociation (vector sums) and
FMA but not "no NaN": a NaN must arrive in the loss, not vanish in a comparison. Kernels live in two files, this and
`choosing`, because numba's cache is invalidated by the file of the kernel alone.
"""

import numba
import numpy as np

PARTS = 64  # more parts than threads, of equal work: a heavy row does not hold up the rest


def jit(parallel=False, reordered=True):
    """Compiled once and kept on disk; where no place for the cache can be written, compiled in every process.

    Numba optimises a parallel kernel again when it comes from the cache. Where sums over few numbers may then be
    vectorised or not, as in a gather, `reordered=False` keeps the order as written.
    """

    def compiled(fn):
        options = {
            "nogil": True,
            "parallel": parallel,
            "error_model": "numpy",
            "fastmath": {"reassoc", "contract", "nsz"} if reordered else {"contract", "nsz"},
        }
        try:
            return numba.njit(cache=True, **options)(fn)
        except (RuntimeError, OSError):
            return numba.njit(cache=False, **options)(fn)

    return compiled


@jit()
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
def sums(start, col, value, W, out):
    """out[t] = sum over the nonzeros p of row t of value[p] * W[col[p]]; four at a time."""
    for part in numba.prange(PARTS):
        for t in range(cut(start, part), cut(start, part + 1)):
            out[t] = 0
            p, end = start[t], start[t + 1]
            while p + 4 <= end:
                i, j, k, l = col[p], col[p + 1], col[p + 2], col[p + 3]
                a, b, c, d = value[p], value[p + 1], value[p + 2], value[p + 3]
                for n in range(W.shape[1]):
                    out[t, n] += (a * W[i, n] + b * W[j, n]) + (c * W[k, n] + d * W[l, n])
                p += 4
            while p < end:
                i, a = col[p], value[p]
                for n in range(W.shape[1]):
                    out[t, n] += a * W[i, n]
                p += 1


@jit(reordered=False)
def totals(start, value, out):
    """out[r] = sum over the nonzeros p of row r of value[p]."""
    for r in range(start.size - 1):
        s = value.dtype.type(0)
        for p in range(start[r], start[r + 1]):
            s += value[p]
        out[r] = s


@jit()
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
def compact(start, keep, col, value, count, out, kept):
    """The marked columns and values, row after row, and how many each row has; how many in all."""
    q = 0
    for t in range(start.size - 1):
        first = q
        for p in range(start[t], start[t + 1]):
            out[q], kept[q] = col[p], value[p]  # overwritten by the next unless it stays
            q += keep[p]
        count[t] = q - first
    return q


@jit(parallel=True)
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
