"""Products of 8-bit codes, tile by tile, chosen from while they are in a cache: all [tok, d_sae] of them never exist.

A tile is ROWS tokens by BREADTH latents in registers. Its one instruction (VNNI's vpdpbusd: 4 products of unsigned and
signed bytes, added to an int32) is named here, since compilers do not find it in loops; the rest is as in `choosing`.
"""

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .choosing import find_row, half_bits, select
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


@intrinsic
def tile(context, x, stride, panel, steps, out):
    """out[r, l] = sum over i of x[r, i] * panel[l, i] for ROWS rows, `stride` bytes apart, and a panel; addresses."""

    def code(cgctx, builder, sig, args):
        x, stride, panel, steps, out = args
        i32, i64 = ir.IntType(32), ir.IntType(64)
        vector = ir.VectorType(i32, WIDE)
        name, kind = f"llvm.x86.avx512.vpdpbusd.{32 * WIDE}", ir.FunctionType(vector, [vector] * 3)
        multiply = builder.module.declare_intrinsic(name, (), kind)
        every, none = ir.Constant(vector, [0] * WIDE), ir.Constant(vector, ir.Undefined)

        def at(base, offset, what):
            return builder.inttoptr(builder.add(base, offset), what.as_pointer())

        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step, sums = builder.phi(i64), [[builder.phi(vector) for _ in range(ACROSS)] for _ in range(ROWS)]
        begin = builder.mul(step, i64(STEP * BREADTH))
        weights = [
            builder.load(at(panel, builder.add(begin, i64(STEP * WIDE * a)), vector), align=STEP * WIDE)
            for a in range(ACROSS)
        ]
        added = []
        for r in range(ROWS):
            place = at(x, builder.add(builder.mul(step, i64(STEP)), builder.mul(stride, i64(r))), i32)
            one = builder.insert_element(none, builder.load(place, align=STEP), i32(0))
            codes = builder.shuffle_vector(one, none, every)
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
        for i, a in enumerate(a for row in added for a in row):
            builder.store(a, at(out, i64(STEP * WIDE * i), vector), align=STEP * WIDE)
        return cgctx.get_dummy_value()

    return types.void(*[types.int64] * 5), code


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
def numbers(of, first, rows, sums, out):
    """products * by_token * by_latent + bias + reach * norm + blur * lost of some tokens, in bf16."""
    x, stride, panel, steps, total, by_token, by_latent, bias, reach, norm, blur, lost = of
    d_sae = by_latent.size
    for l in range(0, d_sae, BREADTH):
        scale, add = by_latent[l : l + BREADTH], bias[l : l + BREADTH]
        size, rest = norm[l : l + BREADTH], lost[l : l + BREADTH]
        for r in range(0, rows, ROWS):
            tile(x + (first + r) * stride, stride, panel + l * steps * STEP, steps, sums.ctypes.data)
            for q in range(min(ROWS, rows - r)):
                t = first + r + q
                row, to = sums[q * BREADTH : (q + 1) * BREADTH], out[r + q, l : l + BREADTH]
                s, less, a, c = by_token[t], np.int32(MIDDLE) * total[t], reach[t], blur[t]
                if a == 0 and c == 0 and to.size == BREADTH:
                    for i in range(BREADTH):  # a number known beforehand: twice as quick
                        to[i] = half_bits(s * scale[i] * np.float32(row[i] - less) + add[i])
                else:
                    for i in range(to.size):
                        exact = s * scale[i] * np.float32(row[i] - less)
                        to[i] = half_bits(exact + (add[i] + (a * size[i] + c * rest[i])))


@jit()
def aligned(n):
    """n int32, at the beginning of a cache line."""
    a = np.empty(n + 16, np.int32)
    skip = (-a.ctypes.data % 64) // 4
    return a[skip : skip + n]


@jit(parallel=True)
def dense(of, first, bounds, out):
    """All numbers of tokens first + [bounds[0], bounds[-1])."""
    for part in numba.prange(PARTS):
        begin, end = bounds[part], bounds[part + 1]
        if begin < end:
            numbers(of, first + begin, end - begin, aligned(ROWS * BREADTH), out[begin:end])


@jit(parallel=True)
def largest(of, first, bounds, room, k, lanes, out, value, count, index, kept):
    """`select_rows` of numbers that are made a block of tokens at a time; `kept` takes those of the latents `index`."""
    d_sae = of[6].size
    for part in numba.prange(PARTS):
        sums, here = aligned(ROWS * BREADTH), room[numba.get_thread_id()]
        best, near = np.empty(lanes, np.int16), np.empty(d_sae, np.int16)
        lane, found = np.empty(lanes, np.int32), np.empty(d_sae, np.int32)
        for begin in range(bounds[part], bounds[part + 1], len(here)):
            rows = min(len(here), bounds[part + 1] - begin)
            numbers(of, first + begin, rows, sums, here)
            for r in range(rows):
                t = begin + r
                count[t] = select(here[r], k, best, lane, found, near, out[t], value[t])
                for i in range(index.size):
                    kept[t, i] = here[r, index[i]]


@jit(parallel=True)
def above(of, first, bounds, room, floor, place, latent, value, count, found, index, kept):
    """`find_above` of numbers that are made a block of tokens at a time; `kept` takes those of the latents `index`."""
    for part in numba.prange(PARTS):
        sums, here = aligned(ROWS * BREADTH), room[numba.get_thread_id()]
        p = place[part]
        for begin in range(bounds[part], bounds[part + 1], len(here)):
            rows = min(len(here), bounds[part + 1] - begin)
            numbers(of, first + begin, rows, sums, here)
            for r in range(rows):
                t, q = begin + r, p
                p = find_row(here[r], floor, p, place[part + 1], latent, value)
                count[t] = p - q
                for i in range(index.size):
                    kept[t, i] = here[r, index[i]]
        found[part] = p - place[part]
