"""Products with float32 activations, tile by tile, accumulated in float32.

A tile of RUN rows by up to SLAB inputs is brought into scratch as float32, one input of all its
rows after the other (a lane is a row): (code - zero) * scale, exact, or the float weights. Then it
meets all tokens. Quantised weights take this path for exact verification, whatever the number of
tokens; float16 and float32 weights for prefill.

The truth: `reference.matmul_nbits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.tile_steps import (
    FLOAT_T,
    ROW_BYTES,
    RUN,
    R,
    float_fma,
    float_store,
    float_zero,
    token_fma,
    token_store,
    token_zero,
    transpose_f16,
    transpose_f16_first,
    transpose_f32,
    transpose_f32_first,
    transpose_words,
    unpack_floats,
)
from edgetok.kernels_cpu.linear.tiles import finish_tile, read_scales
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import f32_from_bits, read_i64, read_u8, store_f32, write_f32
from edgetok.kernels_cpu.simd.ops import splat_f32

SLAB = 256  # inputs: 32 KB of float32 weights with vectors of 64 bytes
_GROUPS = max(SLAB // 32, LANES)

# Regions of a thread's scratch.
_WORDS = 0
_HIGHS = LANES * VB
_SCALES = 2 * LANES * VB
_ZEROS = _SCALES + _GROUPS * ROW_BYTES
_OUT = _ZEROS + _GROUPS * ROW_BYTES
_WEIGHTS = _OUT + FLOAT_T * ROW_BYTES
if _WEIGHTS + SLAB * ROW_BYTES > layout.SCRATCH_BYTES:
    raise ValueError("a tile does not fit the scratch")


def _make_fill(bits: int) -> Any:
    """A function that brings inputs k..k + width of RUN rows, starting with row n, to scratch."""
    if bits in (16, 32):
        full, part = (
            (transpose_f16, transpose_f16_first)
            if bits == 16
            else (transpose_f32, transpose_f32_first)
        )
        each = bits // 8

        @inline
        def fill_floats(instr, n, rows, k, width, scratch):  # type: ignore[no-untyped-def]
            weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
            wb = each * read_i64(instr + 8 * layout.MATMUL_K)
            for r in range(R):
                skip = r * LANES if rows > r * LANES else 0
                last = rows - 1 - skip
                w, out = weight + (n + skip) * wb + each * k, scratch + _WEIGHTS + r * VB
                whole = width // LANES * LANES
                for i in range(0, whole, LANES):
                    full(w + each * i, wb, last, out + i * ROW_BYTES)
                if whole < width:
                    part(w + each * whole, wb, last, out + whole * ROW_BYTES, width - whole)

        return fill_floats

    three = bits == 3
    stored_bits = 2 if three else bits
    zero_bits = 8 if three else bits
    zero_mask = (1 << zero_bits) - 1
    middle = np.float32(1 << (bits - 1))
    unpack = unpack_floats(bits)
    word_codes = 32 // stored_bits

    @inline
    def fill(instr, n, rows, k, width, scratch):  # type: ignore[no-untyped-def]
        weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
        high = read_i64(instr + 8 * layout.MATMUL_HIGH)
        scales = read_i64(instr + 8 * layout.MATMUL_SCALES)
        zeros = read_i64(instr + 8 * layout.MATMUL_ZEROS)
        K = read_i64(instr + 8 * layout.MATMUL_K)
        group_size = read_i64(instr + 8 * layout.MATMUL_GROUP) & 0xFFFFFFFF
        G = (K + group_size - 1) // group_size
        wb, hb, zb = (
            G * group_size * stored_bits // 8,
            G * group_size // 8,
            (G * zero_bits + 7) // 8,
        )
        first = k // group_size
        groups = (width + group_size - 1) // group_size
        read_scales(scales + n * 2 * G, 2 * G, rows, first, groups, scratch + _SCALES)
        zero_bytes = 0
        if zeros == 0:
            for r in range(R):
                store_f32(scratch + _ZEROS + r * VB, splat_f32(middle))
        else:
            zero_bytes = ROW_BYTES
            for i in range(RUN):
                row = zeros + (n + (i if i < rows else rows - 1)) * zb
                for g in range(groups):
                    bit = (first + g) * zero_bits
                    zero = (read_u8(row + (bit >> 3)) >> (bit & 7)) & zero_mask
                    write_f32(scratch + _ZEROS + g * ROW_BYTES + 4 * i, np.float32(zero))
        nbytes = groups * group_size * stored_bits // 8
        for r in range(R):
            skip = r * LANES if rows > r * LANES else 0
            last = rows - 1 - skip
            w = weight + (n + skip) * wb + k * stored_bits // 8
            h = high + (n + skip) * hb + k // 8
            out = scratch + _WEIGHTS + r * VB
            for start in range(0, nbytes, VB):
                left = nbytes - start
                if left > VB:
                    left = VB
                transpose_words(w + start, wb, last, left, scratch + _WORDS)
                if three:
                    transpose_words(h + start // 2, hb, last, left // 2, scratch + _HIGHS)
                for j in range(left // 4):
                    g = (start + 4 * j) * (8 // stored_bits) // group_size
                    unpack(
                        scratch + _WORDS + j * VB,
                        scratch + _HIGHS + (j >> 1) * VB,
                        (j & 1) << 4,
                        scratch + _SCALES + g * ROW_BYTES + r * VB,
                        scratch + _ZEROS + g * zero_bytes + r * VB,
                        out,
                    )
                    out += word_codes * ROW_BYTES

    return fill


def make_float_tiles(bits: int) -> Any:
    """The kernel body for weights of `bits` and float32 activations."""
    fill = _make_fill(bits)

    @inline
    def tiles(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        """The tiles of one thread, all tokens."""
        y = read_i64(instr + 8 * layout.MATMUL_Y)
        x = read_i64(instr + 8 * layout.MATMUL_X)
        bias = read_i64(instr + 8 * layout.MATMUL_BIAS)
        N = read_i64(instr + 8 * layout.MATMUL_N)
        K = read_i64(instr + 8 * layout.MATMUL_K)
        yb = 4 * read_i64(instr + 8 * layout.MATMUL_Y_STRIDE)
        scratch = read_i64(instr + 8 * layout.MATMUL_SCRATCH) + tid * layout.SCRATCH_BYTES
        epilogue = read_i64(instr + 8 * layout.MATMUL_EPILOGUE)
        factor, onto = f32_from_bits(epilogue), epilogue >> 32
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        xb = 4 * K
        if read_i64(instr + 8 * layout.MATMUL_LAST) != 0:
            x += (tokens - 1) * xb
            tokens = 1
        out = scratch + _OUT
        blocks = tokens // FLOAT_T * FLOAT_T
        count = (N + RUN - 1) // RUN
        for tile in range(tid * count // threads, (tid + 1) * count // threads):
            n = tile * RUN
            for k in range(0, K, SLAB):
                width = K - k
                if width > SLAB:
                    width = SLAB
                fill(instr, n, N - n, k, width, scratch)
                later, final = onto != 0 or k != 0, k + width == K
                for t in range(0, blocks, FLOAT_T):
                    f = float_zero()
                    a, w = x + t * xb + 4 * k, scratch + _WEIGHTS
                    for _ in range(width):
                        f = float_fma(f, w, a, xb)
                        w, a = w + ROW_BYTES, a + 4
                    float_store(f, out)
                    finish_tile(out, FLOAT_T, y + t * yb, yb, bias, n, N, factor, later, final)
                for t in range(blocks, tokens):  # x has no rows beyond the last token's
                    v = token_zero()
                    a, w = x + t * xb + 4 * k, scratch + _WEIGHTS
                    for _ in range(width):
                        v = token_fma(v, w, a, xb)
                        w, a = w + ROW_BYTES, a + 4
                    token_store(v, out)
                    finish_tile(out, 1, y + t * yb, yb, bias, n, N, factor, later, final)

    return tiles
