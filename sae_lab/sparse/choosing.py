"""The loops that choose: what of a row is largest or over a floor, and rows in 8 bits to choose by. As in `kernels`.

Numba's cache of these is invalidated by this file alone: whoever changes `cut` must change something here as well.
"""

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from .kernels import PARTS, cut, jit

STRETCH = 64  # scores that are counted together; as many as a uint64 has bits
TINY = np.float32(1e-30)  # rows all of whose numbers are under it are all rest


@intrinsic
def as_float(context, bits):
    """An int32's bits as a float32."""
    return types.float32(types.int32), lambda c, b, sig, args: b.bitcast(args[0], c.get_value_type(types.float32))


@intrinsic
def as_bits(context, number):
    """A float32's bits as an int32."""
    return types.int32(types.float32), lambda c, b, sig, args: b.bitcast(args[0], c.get_value_type(types.int32))


@intrinsic
def lowest(context, bits):
    """Which bit of a uint64 is the lowest that is set."""
    return types.int64(types.uint64), lambda c, b, sig, args: b.cttz(args[0], c.get_constant(types.boolean, True))


@jit()
def from_half(bits):
    """The float of a bf16 that is seen as int16."""
    return as_float(np.int32(bits) << np.int32(16))


def number(x):
    """What a score means as a number: bf16 are seen as int16, all others are what they are."""
    return np.left_shift(x, 16, dtype=np.int32).view(np.float32) if isinstance(x, np.int16) else x


@overload(number, inline="always")
def _number(x):
    return (lambda x: from_half(x)) if x == types.int16 else (lambda x: x)


@jit()
def half_bits(number):
    """The nearest bf16, seen as int16; of two as near the even one. A NaN stays one, whatever its bits."""
    bits = as_bits(number)
    bits = bits if number == number else np.int32(0x7FC00000)
    return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@jit()
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
def select_rows(key, k, lanes, out, value, count):
    """The k largest positive of every row, into out[t, :count[t]] and value."""
    tok, n = key.shape
    for part in numba.prange(PARTS):
        best, near = np.empty(lanes, key.dtype), np.empty(n, key.dtype)
        lane, found = np.empty(lanes, np.int32), np.empty(n, np.int32)
        for t in range(tok * part // PARTS, tok * (part + 1) // PARTS):
            count[t] = select(key[t], k, best, lane, found, near, out[t], value[t])


@jit(parallel=True)
def keep_largest(key, k, out):
    """A copy of every row with zeros for all but its k largest positive; ties go to the lowest column."""
    tok, n = key.shape
    one = key.dtype.type(1)
    for part in numba.prange(PARTS):
        for t in range(tok * part // PARTS, tok * (part + 1) // PARTS):
            row, to = key[t], out[t]
            kth = max(kth_largest(row, k), one)
            more = np.int32(0)
            for i in range(n):
                more += np.int32(1) if row[i] > kth else np.int32(0)
            for i in range(n):
                to[i] = row[i] if row[i] > kth else key.dtype.type(0)
            for i in range(n):
                if row[i] == kth and more < k:
                    to[i] = kth
                    more += np.int32(1)


@jit(parallel=True)
def columns(a, index, out):
    """Some columns of every row."""
    for part in numba.prange(PARTS):
        for t in range(len(a) * part // PARTS, len(a) * (part + 1) // PARTS):
            row, to = a[t], out[t]
            for i in range(index.size):
                to[i] = row[index[i]]


@jit(parallel=True)
def quantise(rows, code, total, scale, norm, lost):
    """code[r] = rows[r] / scale[r], rounded, the largest 127; `total`: their sum; `lost`: norm of what rounding took.

    A row that is not finite gets the scale NaN: whatever is multiplied with it is lost as well.
    """
    tok, n = rows.shape
    for part in numba.prange(PARTS):
        for t in range(tok * part // PARTS, tok * (part + 1) // PARTS):
            row, to = rows[t], code[t]
            top, whole, size, gone = np.int32(0), np.int32(0), rows.dtype.type(0), rows.dtype.type(0)
            for i in range(n):
                top = max(top, as_bits(row[i]) & np.int32(0x7FFFFFFF))  # as integers the maximum is vectorised
            most = as_float(top)
            if not TINY <= most < np.inf:
                small = most * np.sqrt(rows.dtype.type(n))
                scale[t], norm[t], lost[t] = 0 if most < TINY else np.nan, 0, small if most < TINY else 0
                total[t] = 0
                for i in range(to.size):
                    to[i] = 0
                continue
            for i in range(n, to.size):
                to[i] = 0
            per = rows.dtype.type(127) / most
            for i in range(n):  # in units of the scale, in which no square overflows
                exact = row[i] * per
                near = np.rint(exact)
                size += exact * exact
                gone += (exact - near) * (exact - near)
                to[i] = np.int32(near)
                whole += np.int32(near)
            unit = most / rows.dtype.type(127)
            total[t], scale[t], norm[t], lost[t] = whole, unit, unit * np.sqrt(size), unit * np.sqrt(gone)


@jit(parallel=True)
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


@jit()
def reaches(start, exact, score, keep, out):
    """Of each group: by how much scores are off (root mean square), the least exact one kept, and the least score."""
    for g in range(start.size - 1):
        a, b, kept = exact[start[g] : start[g + 1]], score[start[g] : start[g + 1]], keep[start[g] : start[g + 1]]
        total, least, last = exact.dtype.type(0), exact.dtype.type(np.inf), exact.dtype.type(np.inf)
        for i in range(a.size):
            total += (a[i] - b[i]) * (a[i] - b[i])
            least = min(least, a[i] if kept[i] else exact.dtype.type(np.inf))
            last = min(last, b[i])
        out[0, g], out[1, g], out[2, g] = np.sqrt(total / a.size), least, last


@jit()
def find_row(row, floor, p, end, latent, value):
    """Places and values of what is not at or below the floor (a NaN is not), from p on; where the next ones go.

    At `end` it only counts on. Many stretches have none; the hits of the others become bits first, which is vectorised.
    """
    one = np.uint64(1)
    for b in range(0, row.size, STRETCH):
        piece, low = row[b : b + STRETCH], floor[b : b + STRETCH]
        hits = np.int32(0)
        for i in range(piece.size):
            hits += np.int32(0) if number(piece[i]) <= low[i] else np.int32(1)
        if hits and p + hits <= end:
            bits, q = np.uint64(0), p
            for i in range(piece.size):
                bits |= (np.uint64(0) if number(piece[i]) <= low[i] else one) << np.uint64(i)
            while bits:
                i = lowest(bits)
                latent[q], value[q] = b + i, number(piece[i])
                q += 1
                bits &= bits - one
        p += hits
    return p


@jit(parallel=True)
def find_above(score, floor, bounds, place, latent, value, count, found):
    """`find_row` for every row, counted by row and by part; part p writes between place[p] and place[p + 1]."""
    for part in numba.prange(PARTS):
        p = place[part]
        for t in range(bounds[part], bounds[part + 1]):
            q = p
            p = find_row(score[t], floor, p, place[part + 1], latent, value)
            count[t] = p - q
        found[part] = p - place[part]


@jit()
def pack(place, found, latent, value, to_latent, to_value):
    """What the parts found, one after another."""
    p = 0
    for part in range(PARTS):
        for q in range(place[part], place[part] + found[part]):
            to_latent[p], to_value[p] = latent[q], value[q]
            p += 1
