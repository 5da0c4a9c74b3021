"""Products of quantised weights with a few int8 tokens, row by row: decoding.

    y[t, n] = sum_chunks, lanes a_scale * w_scale[n] * (dot4(q[n], a) - middle * sum(a))

Each row is read once, as it lies in the artefact, two rows at a time (8 bits: one), while a
prefetch runs ahead of both in one stream, as memory likes it. The integers of a chunk (one vector
of packed weights) are exact; each lane then adds its product in float32, chunk by chunk. Sums of
LANES rows wait in scratch until their lanes are added together. Every token goes through these same
operations in this order, alone or beside others, so several tokens give the bits that one gives.

Zero points other than the middle of the range cost one small product a row, before the chunks:

    sum_groups w_scale * (middle - zero) * (sum over the group's blocks of a_scale * sum(a))

The truth: `reference.matmul_nbits_int8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.code_orders import LOAD_CODES, LOAD_CODES_FIRST, load_f16_first
from edgetok.kernels_cpu.linear.row_steps import AHEAD_BYTES, row_step, store_tokens, sum_vectors
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f16,
    load_f32,
    load_f32_first,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import add, fma, mul, splat_f32, sub, zero_f32

PAIR = 2  # rows side by side, which then load their activations half as often
TOKENS = 4  # side by side


@inline
def finish_rows(sums, y, bias, n, rows, factor, onto):  # type: ignore[no-untyped-def]
    """The epilogue of rows n..n + rows (at most LANES): y = [y +] factor * (sum of lanes + bias).

    sums: address of LANES vectors; those from `rows` on are not used, but read.
    """
    value = sum_vectors(sums)
    scale = splat_f32(factor)
    if rows >= LANES:
        if bias != 0:
            value = add(value, load_f32(bias + 4 * n))
        value = mul(value, scale)
        if onto != 0:
            value = add(value, load_f32(y + 4 * n))
        store_f32(y + 4 * n, value)
    else:
        if bias != 0:
            value = add(value, load_f32_first(bias + 4 * n, rows))
        value = mul(value, scale)
        if onto != 0:
            value = add(value, load_f32_first(y + 4 * n, rows))
        store_f32_first(y + 4 * n, value, rows)


def make_zero_points(bits: int) -> Any:
    """A function that computes, by lane, what zero points other than the middle add to a row."""
    zero_bits = 8 if bits == 3 else bits
    load_codes, load_first = LOAD_CODES[zero_bits], LOAD_CODES_FIRST[zero_bits]
    middle = np.float32(1 << (bits - 1))

    @inline
    def zero_points(scales, zeros, groups, G):  # type: ignore[no-untyped-def]
        total = zero_f32()
        if zeros == 0:
            return total
        whole = G // LANES
        for i in range(whole):
            z = load_codes(zeros + i * (LANES * zero_bits) // 8)
            part = mul(load_f16(scales + 2 * LANES * i), sub(splat_f32(middle), z))
            total = fma(part, load_f32(groups + 4 * LANES * i), total)
        rest = G - whole * LANES
        if rest > 0:
            at = whole * LANES
            z = load_first(zeros + at * zero_bits // 8, rest)
            part = mul(load_f16_first(scales + 2 * at, rest), sub(splat_f32(middle), z))
            total = fma(part, load_f32_first(groups + 4 * at, rest), total)
        return total

    return zero_points


def make_rows(bits: int) -> Any:
    """The kernel body for weights of `bits` and up to DECODE_TOKENS tokens."""
    planes = layout.PLANES[bits]
    chunk_codes = planes * VB
    chunk_bytes = (planes + 2) * VB  # of activations
    stored_bits = 2 if bits == 3 else bits
    zero_bits = 8 if bits == 3 else bits
    zero_points = make_zero_points(bits)

    def sums_of(count: int, rows: int, tokens: int) -> Any:
        """Sums of rows x tokens over a row's chunks, each of which needs `count` scales."""
        step, last_step = (row_step(bits, count, rows, tokens, part) for part in (False, True))

        @inline
        def sums(f, w, h, s, x, wb, hb, sb, xb, last, length, G, group_size):  # type: ignore[no-untyped-def]
            chunks, tail = length // VB, length % VB
            for _ in range(chunks):
                f = step(f, w, h, s, x, wb, hb, sb, xb, last)
                w, h, s, x = w + VB, h + VB // 2, s + 2 * count, x + chunk_bytes
                if tokens == 1:  # the prefetches run on
                    xb, last = xb + rows * VB, last + rows * 2 * count
            if tail != 0:
                f = last_step(f, w, h, s, x, wb, hb, sb, xb, last, tail, G - count * chunks)
            return f

        return sums

    def sums_of_long_groups(rows: int, tokens: int) -> Any:
        """The same for groups of one or several whole chunks."""
        step = row_step(bits, 1, rows, tokens, False)

        @inline
        def sums(f, w, h, s, x, wb, hb, sb, xb, last, length, G, group_size):  # type: ignore[no-untyped-def]
            each = group_size // chunk_codes
            for _ in range(G):
                for _ in range(each):
                    f = step(f, w, h, s, x, wb, hb, sb, xb, last)
                    w, h, x = w + VB, h + VB // 2, x + chunk_bytes
                    if tokens == 1:
                        xb += rows * VB
                s += 2
                if tokens == 1:
                    last += rows * 2
            return f

        return sums

    def choose(count: int, sums: Any, otherwise: Any) -> Any:
        @inline
        def chosen(f, w, h, s, x, wb, hb, sb, xb, last, length, G, group_size):  # type: ignore[no-untyped-def]
            if group_size * count == chunk_codes:
                return sums(f, w, h, s, x, wb, hb, sb, xb, last, length, G, group_size)
            return otherwise(f, w, h, s, x, wb, hb, sb, xb, last, length, G, group_size)

        return chosen

    def make_sums(rows: int, tokens: int) -> Any:
        """Sums of rows x tokens for every group size."""
        sums = sums_of_long_groups(rows, tokens)
        for count in (2, 4, 8):
            if count * 32 <= chunk_codes:
                sums = choose(count, sums_of(count, rows, tokens), sums)
        return sums

    # Two long rows of 8 bits and their activations do not fit the L1 cache.
    side = 1 if bits == 8 else PAIR
    row_sums = make_sums(side, 1)
    store_rows = store_tokens(side, 1)

    @inline
    def begin_one(s, z, sr, zr, groups, G):  # type: ignore[no-untyped-def]
        return (zero_points(s, z, groups, G),)

    @inline
    def begin_pair(s, z, sr, zr, groups, G):  # type: ignore[no-untyped-def]
        return (zero_points(s, z, groups, G), zero_points(s + sr, z + zr, groups, G))

    begin = begin_one if side == 1 else begin_pair
    pair_sums = make_sums(PAIR, TOKENS)
    store_sums = store_tokens(PAIR, TOKENS)

    @inline
    def rows(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        """The rows of one thread, all tokens."""
        y = read_i64(instr + 8 * layout.MATMUL_Y)
        x = read_i64(instr + 8 * layout.MATMUL_X)
        weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
        high = read_i64(instr + 8 * layout.MATMUL_HIGH)
        scales = read_i64(instr + 8 * layout.MATMUL_SCALES)
        zeros = read_i64(instr + 8 * layout.MATMUL_ZEROS)
        bias = read_i64(instr + 8 * layout.MATMUL_BIAS)
        N = read_i64(instr + 8 * layout.MATMUL_N)
        K = read_i64(instr + 8 * layout.MATMUL_K)
        group_size = read_i64(instr + 8 * layout.MATMUL_GROUP) & 0xFFFFFFFF
        block = read_i64(instr + 8 * layout.MATMUL_GROUP) >> 32
        yb = 4 * read_i64(instr + 8 * layout.MATMUL_Y_STRIDE)
        scratch = read_i64(instr + 8 * layout.MATMUL_SCRATCH) + tid * layout.SCRATCH_BYTES
        epilogue = read_i64(instr + 8 * layout.MATMUL_EPILOGUE)
        factor, onto = f32_from_bits(epilogue), epilogue >> 32
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        if read_i64(instr + 8 * layout.MATMUL_LAST) != 0:
            tokens = 1
        codes = layout.padded_codes(K, group_size, planes, VB)
        xb = layout.decode_token_bytes(codes, block, group_size, planes)
        groups = x + layout.decode_scales_offset(codes, planes)
        groups += layout.blocks_bytes(codes, block)
        G = (K + group_size - 1) // group_size
        wb, hb, sb = G * group_size * stored_bits // 8, G * group_size // 8, 2 * G
        zb = (G * zero_bits + 7) // 8 if zeros != 0 else 0

        runs = (N + LANES - 1) // LANES
        for run in range(tid * runs // threads, (tid + 1) * runs // threads):
            n = run * LANES
            end = n + LANES if n + LANES < N else N
            for r in range(n, end, side if tokens == 1 else PAIR):
                # An odd last row is its own neighbour.
                odd = r + 1 == end
                wr, hr, sr = (0, 0, 0) if odd else (wb, hb, sb)
                s, z = scales + r * sb, zeros + r * zb
                zr = 0 if odd else zb
                w, h = weight + r * wb, high + r * hb
                if tokens == 1:
                    f = begin(s, z, sr, zr, groups, G)
                    far = side * wb if side * wb > AHEAD_BYTES else AHEAD_BYTES
                    near = side * sb if side * sb > AHEAD_BYTES // 8 else AHEAD_BYTES // 8
                    f = row_sums(f, w, h, s, x, wr, hr, sr, w + far, s + near, wb, G, group_size)
                    store_rows(f, scratch + (r - n) * VB)
                else:
                    for t in range(0, tokens, TOKENS):
                        last = tokens - 1 - t
                        g0 = groups + t * xb
                        g1 = g0 + (1 if last > 1 else last) * xb
                        g2 = g0 + (2 if last > 2 else last) * xb
                        g3 = g0 + (3 if last > 3 else last) * xb
                        v = (
                            zero_points(s, z, g0, G),
                            zero_points(s, z, g1, G),
                            zero_points(s, z, g2, G),
                            zero_points(s, z, g3, G),
                            zero_points(s + sr, z + zr, g0, G),
                            zero_points(s + sr, z + zr, g1, G),
                            zero_points(s + sr, z + zr, g2, G),
                            zero_points(s + sr, z + zr, g3, G),
                        )
                        v = pair_sums(
                            v, w, h, s, x + t * xb, wr, hr, sr, xb, last, wb, G, group_size
                        )
                        store_sums(v, scratch + (t * LANES + r - n) * VB)
            for t in range(tokens):
                sums = scratch + t * LANES * VB
                finish_rows(sums, y + t * yb, bias, n, end - n, factor, onto)

    return rows
