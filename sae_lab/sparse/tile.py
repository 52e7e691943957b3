"""One tile of a product of 8-bit codes, in LLVM's words, with what is asked of its numbers while they are in registers.

A tile is ROWS tokens by BREADTH latents. Its one instruction (VNNI's vpdpbusd: 4 products of unsigned and signed bytes,
added to an int32) is named here, since compilers do not find it in loops.
"""

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_other = numba.config.CPU_NAME or numba.config.CPU_FEATURES or not numba.config.ENABLE_AVX  # code is not for this CPU
HAS = {} if _other else llvmlite.binding.get_host_cpu_features()
WIDE = 16 if HAS.get("avx512vnni") and HAS.get("avx512f") else 8  # int32 in a register
SUPPORTED = WIDE == 16 or bool(HAS.get("avxvnni"))
# tokens, and registers of latents, of a tile: all sums stay in registers
ROWS, ACROSS = (8, 3) if WIDE == 16 else (4, 3)
BREADTH = ACROSS * WIDE
STEP = 4  # codes that are multiplied at once

I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
WHOLE, FLOATS = ir.VectorType(I32, WIDE), ir.VectorType(F32, WIDE)
ZEROS = ir.Constant(WHOLE, [0] * WIDE)


def _tile(boost: bool):
    """`tile`, or with `boost` what multiplies the numbers that are in `out` by 1 + the absolute value of its own."""

    @intrinsic
    def tile(context, x, stride, panel, steps, token, tokens, latent, latents, out, over):
        """Numbers of ROWS tokens and a panel of latents, and for each token a bit per latent that is over the floor.

        out[r, l] = scale[r] * scale[l] * (sum over i of x[r, i] * panel[l, i] - shift[r]) + bias[l]
                    + reach[r] * norm[l] + blur[r] * lost[l]
        over[r]: which of those are neither at or below floor[r] nor floor[l]

        Arguments are addresses, or distances in bytes: `stride` between rows of x, `tokens` between scale, reach, blur,
        floor and shift (an int32) of the tokens, `latents` between scale, norm, lost, floor and bias of the latents.
        """

        def code(cgctx, builder, sig, args):
            sums = _products(builder, *args[:4])
            for r, row in enumerate(sums):
                _finish(builder, r, row, *args[4:], boost)
            return cgctx.get_dummy_value()

        return types.void(*[types.int64] * 10), code

    return tile


tile, boosting = _tile(False), _tile(True)


def _products(builder, x, stride, panel, steps) -> list[list]:
    """The loop over codes: a register of sums for each token and WIDE latents."""
    multiply = _known(builder, f"llvm.x86.avx512.vpdpbusd.{32 * WIDE}", WHOLE, 3)
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    step, sums = builder.phi(I64), [[builder.phi(WHOLE) for _ in range(ACROSS)] for _ in range(ROWS)]
    begin = builder.mul(step, I64(STEP * BREADTH))
    panels = [builder.add(begin, I64(STEP * WIDE * a)) for a in range(ACROSS)]
    weights = [_load(builder, panel, place, WHOLE, STEP * WIDE) for place in panels]
    added = []
    for r in range(ROWS):
        place = builder.add(builder.mul(step, I64(STEP)), builder.mul(stride, I64(r)))
        codes = _all_of(builder, _load(builder, x, place, I32, STEP))
        added.append([builder.call(multiply, [s, w, codes]) for s, w in zip(sums[r], weights)])
    following = builder.add(step, I64(1))
    step.add_incoming(I64(0), before)
    step.add_incoming(following, loop)
    for row, now in zip(sums, added):
        for s, a in zip(row, now):
            s.add_incoming(ZEROS, before)
            s.add_incoming(a, loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    return added


def _finish(builder, r, sums, token, tokens, latent, latents, out, over, boost) -> None:
    """The numbers of token r, and which of them are over the floor."""
    fma, fabs = _known(builder, f"llvm.fma.v{WIDE}f32", FLOATS, 3), _known(builder, f"llvm.fabs.v{WIDE}f32", FLOATS, 1)

    def of_token(field, kind):
        place = builder.add(builder.mul(tokens, I64(field)), I64(4 * r))
        return _all_of(builder, _load(builder, token, place, kind, 4))

    def of_latent(field, a):
        return _load(builder, latent, builder.add(builder.mul(latents, I64(field)), I64(4 * WIDE * a)), FLOATS, 4)

    scale, reach, blur, floor = (of_token(field, F32) for field in range(4))
    shift, bits = of_token(4, I32), I64(0)
    for a in range(ACROSS):
        whole = builder.sitofp(builder.sub(sums[a], shift), FLOATS)
        rest = builder.call(fma, [reach, of_latent(1, a), of_latent(4, a)])
        rest = builder.call(fma, [blur, of_latent(2, a), rest])
        number = builder.call(fma, [builder.fmul(scale, of_latent(0, a)), whole, rest])
        to = builder.inttoptr(builder.add(out, I64(4 * (r * BREADTH + a * WIDE))), FLOATS.as_pointer())
        if boost:
            there = builder.load(to, align=4 * WIDE)
            number = builder.call(fma, [builder.call(fabs, [number]), there, there])
        builder.store(number, to, align=4 * WIDE)
        high = [builder.fcmp_unordered(">", number, low) for low in (floor, of_latent(3, a))]
        mask = builder.bitcast(builder.and_(*high), ir.IntType(WIDE))
        bits = builder.or_(bits, builder.shl(builder.zext(mask, I64), I64(a * WIDE)))
    builder.store(bits, builder.inttoptr(builder.add(over, I64(8 * r)), I64.as_pointer()), align=8)


def _known(builder, name, kind, arguments):
    return builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, [kind] * arguments))


def _load(builder, base, offset, kind, align):
    return builder.load(builder.inttoptr(builder.add(base, offset), kind.as_pointer()), align=align)


def _all_of(builder, number):
    kind = ir.VectorType(number.type, WIDE)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, I32(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ZEROS)
