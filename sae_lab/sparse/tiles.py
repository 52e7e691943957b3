"""Products of 8-bit codes, tile by tile, chosen from while they are in a cache: all [tok, d_sae] of them never exist.

Numba's cache of these is invalidated by this file alone: whoever changes `tile` must change something here as well.
"""

import numba
import numpy as np

from .choosing import as_bits, as_float, half_bits, lowest
from .kernels import PARTS, jit
from .tile import BREADTH, ROWS, STEP, boosting, tile

MIDDLE = 128  # what is added to a latent's codes, to make them unsigned
TOKENS = 64  # that meet each panel together: their codes should fit a cache


@jit(parallel=True)
def panels(codes, out):
    """Codes, four as one int32, as `tile` reads them: out[p, i, l] is code i of latent p * BREADTH + l, unsigned."""
    n, steps = codes.shape
    for p in numba.prange(len(out)):
        for l in range(BREADTH):
            row = codes[min(p * BREADTH + l, n - 1)]
            for i in range(steps):
                out[p, i, l] = row[i] ^ np.int32(-0x7F7F7F80)


@jit()
def aligned(n):
    """n float32, at the beginning of a cache line."""
    a = np.empty(n + 16, np.float32)
    skip = (-a.ctypes.data % 64) // 4
    return a[skip : skip + n]


@jit()
def meet(of, t, p, d_sae, out, over, boost=False):
    """`tile` of the tokens from t on and panel p; bits of latents that do not exist are 0."""
    x, stride, panel, steps, token, latent = of
    at = p * BREADTH
    codes, weights, to, bits = x + t * stride, panel + at * steps * STEP, out.ctypes.data, over.ctypes.data
    tokens, latents = token.ctypes.data + 4 * t, latent.ctypes.data + 4 * at
    apart, between = 4 * token.shape[1], 4 * latent.shape[1]
    if boost:
        boosting(codes, stride, weights, steps, tokens, apart, latents, between, to, bits)
    else:
        tile(codes, stride, weights, steps, tokens, apart, latents, between, to, bits)
    if at + BREADTH > d_sae:
        over &= (np.uint64(1) << np.uint64(d_sae - at)) - np.uint64(1)


@jit(parallel=True)
def dense(of, first, bounds, out):
    """All numbers of tokens first + [bounds[0], bounds[-1]), in bf16."""
    d_sae = out.shape[1]
    for part in numba.prange(PARTS):
        sums, over = aligned(ROWS * BREADTH), np.empty(ROWS, np.uint64)
        for p in range(-(-d_sae // BREADTH)):
            for t in range(bounds[part], bounds[part + 1], ROWS):
                meet(of, first + t, p, d_sae, sums, over)
                for r in range(min(ROWS, bounds[part + 1] - t)):
                    to = out[t + r, p * BREADTH : (p + 1) * BREADTH]
                    row = sums[r * BREADTH : r * BREADTH + to.size]
                    for i in range(to.size):
                        to[i] = half_bits(row[i])


@jit()
def those(index, begin, p):
    """Where the latents `index`, looked at from number `begin` on, end that are in panel p."""
    while begin < index.size and index[begin] < (p + 1) * BREADTH:
        begin += 1
    return begin


@jit()
def key_of(number):
    """A positive float as an integer of the same order; a NaN is the largest."""
    return as_bits(number) if number == number else np.int32(0x7FC00000)


@jit()
def best(key, latent, k):
    """The k largest of more keys move to the front, in order, the first of equals; a key that no other is under."""
    low, high = key[0], key[0]
    for i in range(key.size):
        low, high = min(low, key[i]), max(high, key[i])
    ties = k
    while low < high:  # as `kth_largest`, but it may end before the k-th is known
        middle, n = low + (high - low + np.int32(1)) // np.int32(2), np.int32(0)
        for i in range(key.size):
            n += np.int32(1) if key[i] >= middle else np.int32(0)
        if n >= k:
            low = middle
        else:
            high = np.int32(middle - 1)
        if n == k:
            break
    for i in range(key.size):
        ties -= key[i] > low
    n = 0
    for i in range(key.size):
        equal = np.int64(key[i] == low) * np.int64(ties > 0)
        ties -= equal
        key[n], latent[n] = key[i], latent[i]
        n += np.int64(key[i] > low) + equal
    return as_float(np.int32(low - 1))


@jit(parallel=True)
def largest(of, by, boost, first, bounds, k, room, d_sae, out, value, count, index, kept):
    """Columns and values of each token's k largest positive numbers, by column; `kept` takes those of `index`.

    Of each token up to `room` candidates are kept. When they are as many, the best stay and raise the token's floor.
    With `boost` it is numbers * (1 + |those of `by`|) that are chosen from.
    """
    floor = by[4][3] if boost else of[4][3]
    for part in numba.prange(PARTS):
        sums, over = aligned(ROWS * BREADTH), np.empty(ROWS, np.uint64)
        latent, key, n = (
            np.empty((TOKENS, room), np.int32),
            np.empty((TOKENS, room), np.int32),
            np.empty(TOKENS, np.int64),
        )
        for begin in range(bounds[part], bounds[part + 1], TOKENS):
            end, n[:], at = min(begin + TOKENS, bounds[part + 1]), 0, 0
            for p in range(-(-d_sae // BREADTH)):
                before, at = at, those(index, at, p)
                for t in range(begin, end, ROWS):
                    meet(of, first + t, p, d_sae, sums, over)
                    for j in range(before, at):
                        for r in range(min(ROWS, end - t)):
                            kept[t + r, j] = half_bits(sums[r * BREADTH + index[j] - p * BREADTH])
                    if boost:
                        meet(by, first + t, p, d_sae, sums, over, True)
                    for r in range(min(ROWS, end - t)):
                        i, bits = t + r - begin, over[r]
                        while bits:
                            l = lowest(bits)
                            bits &= bits - np.uint64(1)
                            if n[i] == room:
                                floor[first + t + r] = best(key[i], latent[i], k)
                                n[i] = k
                            number = sums[r * BREADTH + l]
                            if not number <= floor[first + t + r]:
                                latent[i, n[i]], key[i, n[i]] = p * BREADTH + l, key_of(number)
                                n[i] += 1
            for i in range(end - begin):
                if n[i] > k:
                    best(key[i, : n[i]], latent[i], k)
                    n[i] = k
                count[begin + i] = n[i]
                for j in range(n[i]):
                    out[begin + i, j], value[begin + i, j] = latent[i, j], as_float(key[i, j])


@jit(parallel=True)
def above(of, first, bounds, d_sae, near, height, place, latent, value, count, found, index, kept):
    """As `choosing.find_above`; `near` and `height` have room for what each thread finds for TOKENS tokens."""
    for part in numba.prange(PARTS):
        sums, over, q = aligned(ROWS * BREADTH), np.empty(ROWS, np.uint64), place[part]
        here, high = near[numba.get_thread_id()], height[numba.get_thread_id()]
        for begin in range(bounds[part], bounds[part + 1], TOKENS):
            end, at = min(begin + TOKENS, bounds[part + 1]), 0
            for p in range(-(-d_sae // BREADTH)):
                before, at = at, those(index, at, p)
                for t in range(begin, end, ROWS):
                    meet(of, first + t, p, d_sae, sums, over)
                    for r in range(min(ROWS, end - t)):
                        i, n, bits = t + r - begin, count[t + r], over[r]
                        while bits:
                            l = lowest(bits)
                            here[i, n], high[i, n] = p * BREADTH + l, sums[r * BREADTH + l]
                            bits &= bits - np.uint64(1)
                            n += 1
                        count[t + r] = n
                        for j in range(before, at):
                            kept[t + r, j] = half_bits(sums[r * BREADTH + index[j] - p * BREADTH])
            for t in range(begin, end):
                if q + count[t] <= place[part + 1]:
                    for n in range(count[t]):
                        latent[q + n], value[q + n] = here[t - begin, n], high[t - begin, n]
                q += count[t]
        found[part] = q - place[part]
