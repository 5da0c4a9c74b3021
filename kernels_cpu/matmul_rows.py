"""Products of quantised weights with a few int8 tokens, row by row: decoding.

    y[t, n] = sum_chunks, lanes a_scale * w_scale[n] * (dot4(q[n], a) - middle * sum(a))

Each row is read once, as it lies in the artefact, four rows side by side, the next four prefetched.
The integers of a chunk (one vector of packed weights) are exact; each lane then adds its product in
float32, chunk by chunk, and the lanes are summed last. Every token goes through these same
operations in this order, alone or beside others, so several tokens give the bits that one gives.

Zero points other than the middle of the range cost one small product a row, before the chunks:

    sum_groups w_scale * (middle - zero) * (sum over the group's blocks of a_scale * sum(a))

The truth: `reference.matmul_nbits_int8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu import linear_layout as layout
from edgetok.kernels_cpu.abi import CTX_TOKENS
from edgetok.kernels_cpu.linear_simd import LOAD_CODES, add_to_first, inline
from edgetok.kernels_cpu.matmul_steps import row_step
from edgetok.kernels_cpu.simd import (
    LANES,
    VB,
    f32_from_bits,
    fma,
    load_f16,
    load_f32,
    mul,
    read_f16,
    read_f32,
    read_i64,
    read_u8,
    splat_f32,
    sub,
    sum_lanes,
    write_f32,
    zero_f32,
)

ROWS = 4  # side by side for one token
TOKENS = 4  # side by side for one row
_ZERO = np.float32(0.0)


@inline
def finish(y, bias, row, value, factor, add):  # type: ignore[no-untyped-def]
    """The epilogue of one result: y = [y +] factor * (value + bias)."""
    if bias != 0:
        value += read_f32(bias + 4 * row)
    value *= factor
    if add != 0:
        value += read_f32(y)
    write_f32(y, value)


def make_zero_points(bits: int) -> Any:
    """A function that computes, by lane, what zero points other than the middle add to a row."""
    zero_bits = 8 if bits == 3 else bits
    load_codes = LOAD_CODES[zero_bits]
    mask = (1 << zero_bits) - 1
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
        rest = _ZERO
        for g in range(whole * LANES, G):
            z = np.float32((read_u8(zeros + g * zero_bits // 8) >> (g * zero_bits & 7)) & mask)
            rest += read_f16(scales + 2 * g) * (middle - z) * read_f32(groups + 4 * g)
        return add_to_first(total, rest)

    return zero_points


def make_rows(bits: int) -> Any:
    """The kernel body for weights of `bits` and up to DECODE_TOKENS tokens."""
    planes = layout.PLANES[bits]
    chunk_codes = planes * VB
    chunk_bytes = (planes + 2) * VB  # of activations
    stored_bits = 2 if bits == 3 else bits
    zero_bits = 8 if bits == 3 else bits
    zero_points = make_zero_points(bits)

    def make_sums(rows: int, tokens: int) -> Any:
        """A function that sums a rectangle of rows x tokens over the chunks of K."""
        one, two, four, eight = (row_step(bits, n, rows, tokens, False) for n in (1, 2, 4, 8))
        last1, last2, last4, last8 = (row_step(bits, n, rows, tokens, True) for n in (1, 2, 4, 8))

        @inline
        def sums(f, w, h, s, x, wb, hb, sb, xb, last, G, group_size):  # type: ignore[no-untyped-def]
            chunks, tail = wb // VB, wb % VB
            if group_size * 8 == chunk_codes:
                for _ in range(chunks):
                    f = eight(f, w, h, s, x, wb, hb, sb, xb, last)
                    w, h, s, x = w + VB, h + VB // 2, s + 16, x + chunk_bytes
                if tail != 0:
                    f = last8(f, w, h, s, x, wb, hb, sb, xb, last, tail, G - 8 * chunks)
            elif group_size * 4 == chunk_codes:
                for _ in range(chunks):
                    f = four(f, w, h, s, x, wb, hb, sb, xb, last)
                    w, h, s, x = w + VB, h + VB // 2, s + 8, x + chunk_bytes
                if tail != 0:
                    f = last4(f, w, h, s, x, wb, hb, sb, xb, last, tail, G - 4 * chunks)
            elif group_size * 2 == chunk_codes:
                for _ in range(chunks):
                    f = two(f, w, h, s, x, wb, hb, sb, xb, last)
                    w, h, s, x = w + VB, h + VB // 2, s + 4, x + chunk_bytes
                if tail != 0:
                    f = last2(f, w, h, s, x, wb, hb, sb, xb, last, tail, G - 2 * chunks)
            else:
                each = group_size // chunk_codes
                for c in range(chunks):
                    if c != 0 and c % each == 0:
                        s += 2
                    f = one(f, w, h, s, x, wb, hb, sb, xb, last)
                    w, h, x = w + VB, h + VB // 2, x + chunk_bytes
                if tail != 0:
                    if chunks % each == 0:
                        s += 2
                    f = last1(f, w, h, s, x, wb, hb, sb, xb, last, tail, 1)
            return f

        return sums

    row_sums = make_sums(ROWS, 1)
    token_sums = make_sums(1, TOKENS)

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
        epilogue = read_i64(instr + 8 * layout.MATMUL_EPILOGUE)
        factor, add = f32_from_bits(epilogue), epilogue >> 32
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

        quads = (N + ROWS - 1) // ROWS
        row, end = tid * quads // threads * ROWS, (tid + 1) * quads // threads * ROWS
        if end > N:
            end = N
        if tokens == 1:
            while row + ROWS <= end:
                s, z = scales + row * sb, zeros + row * zb
                f = (
                    zero_points(s, z, groups, G),
                    zero_points(s + sb, z + zb, groups, G),
                    zero_points(s + 2 * sb, z + 2 * zb, groups, G),
                    zero_points(s + 3 * sb, z + 3 * zb, groups, G),
                )
                w, h = weight + row * wb, high + row * hb
                f = row_sums(f, w, h, s, x, wb, hb, sb, 0, 0, G, group_size)
                for i in range(ROWS):
                    finish(y + 4 * (row + i), bias, row + i, sum_lanes(f[i]), factor, add)
                row += ROWS
        for r in range(row, end):
            w, h = weight + r * wb, high + r * hb
            s, z = scales + r * sb, zeros + r * zb
            for t in range(0, tokens, TOKENS):
                last = tokens - 1 - t
                g = groups + t * xb
                f = (
                    zero_points(s, z, g, G),
                    zero_points(s, z, g + (1 if last > 1 else last) * xb, G),
                    zero_points(s, z, g + (2 if last > 2 else last) * xb, G),
                    zero_points(s, z, g + (3 if last > 3 else last) * xb, G),
                )
                f = token_sums(f, w, h, s, x + t * xb, wb, hb, sb, xb, last, G, group_size)
                for i in range(TOKENS):
                    if i <= last:
                        out = y + (t + i) * yb + 4 * r
                        finish(out, bias, r, sum_lanes(f[i]), factor, add)

    return rows
