"""Products of 8-bit codes, tile by tile, chosen from while they are in registers: all [tok, d_sae] of them never exist.

A tile is ROWS tokens by BREADTH latents. Its one instruction (VNNI's vpdpbusd: 4 products of unsigned and signed bytes,
added to an int32) is named here, since compilers do not find it in loops; the rest is as in `choosing`.
"""

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .choosing import as_bits, as_float, half_bits, lowest
from .kernels import PARTS, jit

_other = numba.config.CPU_NAME or numba.config.CPU_FEATURES or not numba.config.ENABLE_AVX  # code is not for this CPU
HAS = {} if _other else llvmlite.binding.get_host_cpu_features()
WIDE = 16 if HAS.get("avx512vnni") and HAS.get("avx512f") else 8  # int32 in a register
SUPPORTED = WIDE == 16 or bool(HAS.get("avxvnni"))
# tokens, and registers of latents, of a tile: all sums stay in registers
ROWS, ACROSS = (8, 3) if WIDE == 16 else (4, 3)
BREADTH = ACROSS * WIDE
STEP = 4  # codes that are multiplied at once
MIDDLE = 128  # what is added to a latent's codes, to make them unsigned
TOKENS = 64  # that meet each panel together: their codes should fit a cache


@intrinsic
def tile(context, x, stride, panel, steps, token, tokens, latent, latents, out, over):
    """Numbers of ROWS tokens and a panel of latents, and for each token a bit per latent that is over the floor.

    out[r, l] = scale[r] * scale[l] * (sum over i of x[r, i] * panel[l, i] - shift[r]) + bias[l]
                + reach[r] * norm[l] + blur[r] * lost[l]
    over[r]: which of those are neither at or below floor[r] nor floor[l]

    All arguments are addresses, or distances in bytes: `stride` between rows of x, `tokens` between scale, reach, blur,
    floor and shift (an int32) of the tokens, `latents` between scale, norm, lost, floor and bias of the latents.
    """

    def code(cgctx, builder, sig, args):
        x, stride, panel, steps, token, tokens, latent, latents, out, over = args
        i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
        vector, floats = ir.VectorType(i32, WIDE), ir.VectorType(f32, WIDE)
        name, kind = f"llvm.x86.avx512.vpdpbusd.{32 * WIDE}", ir.FunctionType(vector, [vector] * 3)
        multiply = builder.module.declare_intrinsic(name, (), kind)
        fma = builder.module.declare_intrinsic(f"llvm.fma.v{WIDE}f32", (), ir.FunctionType(floats, [floats] * 3))
        every = ir.Constant(vector, [0] * WIDE)

        def load(base, offset, what, align):
            return builder.load(builder.inttoptr(builder.add(base, offset), what.as_pointer()), align=align)

        def all_of(number):
            kind = ir.VectorType(number.type, WIDE)
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, i32(0))
            return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), every)

        def of_token(field, r, what):
            return all_of(load(token, builder.add(builder.mul(tokens, i64(field)), i64(4 * r)), what, 4))

        def of_latent(field, a):
            return load(latent, builder.add(builder.mul(latents, i64(field)), i64(4 * WIDE * a)), floats, 4)

        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step, sums = builder.phi(i64), [[builder.phi(vector) for _ in range(ACROSS)] for _ in range(ROWS)]
        begin = builder.mul(step, i64(STEP * BREADTH))
        weights = [load(panel, builder.add(begin, i64(STEP * WIDE * a)), vector, STEP * WIDE) for a in range(ACROSS)]
        added = []
        for r in range(ROWS):
            place = builder.add(builder.mul(step, i64(STEP)), builder.mul(stride, i64(r)))
            codes = all_of(load(x, place, i32, STEP))
            added.append([builder.call(multiply, [s, w, codes]) for s, w in zip(sums[r], weights)])
        following = builder.add(step, i64(1))
        step.add_incoming(i64(0), before)
        step.add_incoming(following, loop)
        for row, now in zip(sums, added):
            for s, a in zip(row, now):
                s.add_incoming(every, before)
                s.add_incoming(a, loop)
        builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
        builder.position_at_end(after)
        for r in range(ROWS):
            scale, reach, blur, floor = (of_token(field, r, f32) for field in range(4))
            shift, bits = of_token(4, r, i32), i64(0)
            for a in range(ACROSS):
                whole = builder.sitofp(builder.sub(added[r][a], shift), floats)
                rest = builder.call(fma, [reach, of_latent(1, a), of_latent(4, a)])
                rest = builder.call(fma, [blur, of_latent(2, a), rest])
                number = builder.call(fma, [builder.fmul(scale, of_latent(0, a)), whole, rest])
                to = builder.add(out, i64(4 * (r * BREADTH + a * WIDE)))
                builder.store(number, builder.inttoptr(to, floats.as_pointer()), align=4 * WIDE)
                high = [builder.fcmp_unordered(">", number, low) for low in (floor, of_latent(3, a))]
                mask = builder.bitcast(builder.and_(*high), ir.IntType(WIDE))
                bits = builder.or_(bits, builder.shl(builder.zext(mask, i64), i64(a * WIDE)))
            builder.store(bits, builder.inttoptr(builder.add(over, i64(8 * r)), i64.as_pointer()), align=8)
        return cgctx.get_dummy_value()

    return types.void(*[types.int64] * 10), code


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
def meet(of, t, p, d_sae, out, over):
    """`tile` of the tokens from t on and panel p; bits of latents that do not exist are 0."""
    x, stride, panel, steps, token, latent = of
    at = p * BREADTH
    tile(
        x + t * stride,
        stride,
        panel + at * steps * STEP,
        steps,
        token.ctypes.data + 4 * t,
        4 * token.shape[1],
        latent.ctypes.data + 4 * at,
        4 * latent.shape[1],
        out.ctypes.data,
        over.ctypes.data,
    )
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
def largest(of, first, bounds, k, room, d_sae, out, value, count, index, kept):
    """Columns and values of each token's k largest positive numbers, by column; `kept` takes those of `index`.

    Of each token up to `room` candidates are kept. When they are as many, the best stay and raise the token's floor.
    """
    token = of[4]
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
                    for r in range(min(ROWS, end - t)):
                        i, bits = t + r - begin, over[r]
                        for j in range(before, at):
                            kept[t + r, j] = half_bits(sums[r * BREADTH + index[j] - p * BREADTH])
                        while bits:
                            l = lowest(bits)
                            bits &= bits - np.uint64(1)
                            if n[i] == room:
                                token[3, first + t + r] = best(key[i], latent[i], k)
                                n[i] = k
                            number = sums[r * BREADTH + l]
                            if not number <= token[3, first + t + r]:
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
