"""Products with many tokens, tile by tile: prefill.

A tile is RUN rows (R vectors, a lane is a row) by up to SLAB inputs. Its weights are unpacked once
into scratch, four inputs of a row to a lane, and then meet all tokens, T at a time in registers,
while the next tile's are asked for:

    acc[row, t] = start[t, block] + sum_k dot4(u[row, k], a[t, k])         int32, exact
    f[row, t]  += float(acc) * (w_scale[row, group] * a_scale[t, block])   float32

u = code + offset - zero is unsigned, offset = 2^bits and start = -offset * sum(a), so that zero
points cost nothing here. With 8 bits u = code and offset = 128, and other zero points than 128 add
w_scale * (128 - zero) * (a_scale * sum(a)) for each group. Between slabs y holds the sum so far.

The truth: `reference.matmul_nbits_int8`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.tile_steps import (
    ROW_BYTES,
    RUN,
    STEPS,
    R,
    T,
    tile_dot_u7,
    tile_dot_u8,
    tile_fma,
    tile_fold,
    tile_start,
    tile_store,
    tile_zero,
    transpose_f16,
    transpose_words,
    unpack_words,
    zeros_of_words,
)
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    prefetch,
    read_f16,
    read_f32,
    read_i64,
    read_u8,
    store_f32,
    store_f32_first,
    store_u8,
    write_f32,
    write_i32,
)
from edgetok.kernels_cpu.simd.ops import add, mul, splat_f32, splat_u8

# Inputs: 128 KB of unpacked weights with vectors of 64 bytes. They come from the L2 cache fast
# enough, and most rows are one slab, so that y is written once (Zen 5, November 2026).
SLAB = 4096
_GROUPS = max(SLAB // 32, LANES)  # room for scales of so many groups

_LINE = 64  # bytes that a prefetch brings

# Regions of a thread's scratch.
_WORDS = 0  # a chunk's words, transposed
_HIGHS = LANES * VB
_SCALES = 2 * LANES * VB
_SHIFTS = _SCALES + _GROUPS * ROW_BYTES
_EXTRAS = _SHIFTS + _GROUPS * ROW_BYTES
_OUT = _EXTRAS + _GROUPS * ROW_BYTES
_UNPACKED = _OUT + T * ROW_BYTES
if _UNPACKED + SLAB * RUN > layout.SCRATCH_BYTES:
    raise ValueError("a tile does not fit the scratch")


@inline
def clamp(rows, r):  # type: ignore[no-untyped-def]
    """Of the r-th vector of rows: number of its last one, and how many rows come before it.

    Where there are no such rows any will do, as their results are dropped.
    """
    if rows > r * LANES:
        return rows - 1 - r * LANES, r * LANES
    return 0, 0


@inline
def read_scales(scales, sb, rows, first, count, out):  # type: ignore[no-untyped-def]
    """float16 scales of groups first..first + count of RUN rows to vectors of rows, by group."""
    whole = count // LANES * LANES
    for r in range(R):
        last, skip = clamp(rows, r)
        block = scales + skip * sb + 2 * first
        for g in range(0, whole, LANES):
            transpose_f16(block + 2 * g, sb, last, out + g * ROW_BYTES + r * VB)
    for i in range(RUN):
        row = scales + (i if i < rows else rows - 1) * sb + 2 * first
        for g in range(whole, count):
            write_f32(out + g * ROW_BYTES + 4 * i, read_f16(row + 2 * g))


@inline
def finish_tile(out, tokens, y, yb, bias, n, N, factor, onto, final):  # type: ignore[no-untyped-def]
    """Epilogue of `tokens` tokens of a tile in `out`: y = [y +] factor * (out + bias)."""
    scale = splat_f32(factor)
    for r in range(R):
        first = n + r * LANES
        rows = N - first
        if rows >= LANES:
            for t in range(tokens):
                value = load_f32(out + t * ROW_BYTES + r * VB)
                if bias != 0 and final:
                    value = add(value, load_f32(bias + 4 * first))
                value = mul(value, scale)
                place = y + t * yb + 4 * first
                if onto:
                    value = add(value, load_f32(place))
                store_f32(place, value)
        elif rows > 0:
            for t in range(tokens):
                value = load_f32(out + t * ROW_BYTES + r * VB)
                if bias != 0 and final:
                    value = add(value, load_f32_first(bias + 4 * first, rows))
                value = mul(value, scale)
                place = y + t * yb + 4 * first
                if onto:
                    value = add(value, load_f32_first(place, rows))
                store_f32_first(place, value, rows)


def make_tiles(bits: int) -> Any:
    """The kernel body for weights of `bits` and int8 activations of many tokens."""
    planes = layout.PLANES[bits]
    three, eight = bits == 3, bits == 8
    stored_bits = 2 if three else bits
    zero_bits = 8 if three else bits
    zero_mask = (1 << zero_bits) - 1
    offset, middle = 1 << bits, 1 << (bits - 1)
    unpack = unpack_words(bits)
    spread = zeros_of_words(zero_bits, offset, eight)
    tile_dot = tile_dot_u8 if eight else tile_dot_u7

    @inline
    def read_zeros(zeros, zb, rows, first, count, scratch):  # type: ignore[no-untyped-def]
        """What is added to codes to become u, by group; 8 bits: scale * (128 - zero) instead."""
        if zeros == 0:
            if not eight:
                for r in range(R):
                    store_u8(scratch + _SHIFTS + r * VB, splat_u8(offset - middle))
            return
        begin, words = first * zero_bits // 8, scratch + _WORDS
        nbytes = count * zero_bits // 32 * 4
        out = scratch + (_EXTRAS if eight else _SHIFTS)
        for r in range(R):
            last, skip = clamp(rows, r)
            at = r * VB
            for start in range(0, nbytes, VB):
                left = nbytes - start if nbytes - start < VB else VB
                transpose_words(zeros + skip * zb + begin + start, zb, last, left, words)
                for j in range(left // 4):
                    spread(words + j * VB, scratch + _SCALES + at, out + at)
                    at += 32 // zero_bits * ROW_BYTES
        for i in range(RUN):
            row = zeros + (i if i < rows else rows - 1) * zb
            for g in range(nbytes * 8 // zero_bits, count):
                bit = (first + g) * zero_bits
                zero = (read_u8(row + (bit >> 3)) >> (bit & 7)) & zero_mask
                at = g * ROW_BYTES + 4 * i
                if eight:
                    scale = read_f32(scratch + _SCALES + at)
                    write_f32(out + at, scale * np.float32(128 - zero))
                else:
                    write_i32(out + at, np.int32((offset - zero) * 0x01010101))

    @inline
    def unpack_slab(w, wb, h, hb, rows, nbytes, group_size, shift_bytes, scratch):  # type: ignore[no-untyped-def]
        """`nbytes` of packed codes of RUN rows to u."""
        words, highs = scratch + _WORDS, scratch + _HIGHS
        for r in range(R):
            last = rows - 1 - r * LANES
            if last < 0:
                last = 0
            skip = r * LANES if rows > r * LANES else 0
            out = scratch + _UNPACKED + r * VB
            for start in range(0, nbytes, VB):
                left = nbytes - start
                if left > VB:
                    left = VB
                transpose_words(w + skip * wb + start, wb, last, left, words)
                if three:
                    transpose_words(h + skip * hb + start // 2, hb, last, left // 2, highs)
                for j in range(left // 4):
                    g = (start + 4 * j) * (8 // stored_bits) // group_size
                    shift = scratch + _SHIFTS + g * shift_bytes + r * VB
                    unpack(words + j * VB, highs + (j >> 1) * VB, (j & 1) << 4, shift, out)
                    out += planes * ROW_BYTES

    @inline
    def ask_for(w, h, s, z, codes, group_size):  # type: ignore[no-untyped-def]
        """Prefetch one row's part of a slab."""
        for i in range(0, codes * stored_bits // 8, _LINE):
            prefetch(w + i)
        if three:
            for i in range(0, codes // 8, _LINE):
                prefetch(h + i)
        for i in range(0, 2 * (codes // group_size), _LINE):
            prefetch(s + i)
        prefetch(z)

    @inline
    def tiles(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        """The tiles of one thread, all tokens."""
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
        codes = layout.padded_codes(K, group_size, planes, VB)
        xb = layout.tile_token_bytes(codes, block, group_size)
        x_scales = x + codes
        x_starts = x_scales + layout.blocks_bytes(codes, block)
        x_groups = x_starts + layout.blocks_bytes(codes, block)
        G = (K + group_size - 1) // group_size
        wb, hb, sb = G * group_size * stored_bits // 8, G * group_size // 8, 2 * G
        zb = (G * zero_bits + 7) // 8
        shift_bytes = 0 if zeros == 0 else ROW_BYTES
        out, unpacked = scratch + _OUT, scratch + _UNPACKED
        steps, blocks = block // (4 * STEPS), group_size // block

        units = (N + RUN - 1) // RUN
        for tile in range(tid * units // threads, (tid + 1) * units // threads):
            n = tile * RUN
            rows = N - n
            w, h, s = weight + n * wb, high + n * hb, scales + n * sb
            for k in range(0, G * group_size, SLAB):
                width = G * group_size - k
                if width > SLAB:
                    width = SLAB
                final = k + width == G * group_size
                first, groups = k // group_size, width // group_size
                read_scales(s, sb, rows, first, groups, scratch + _SCALES)
                read_zeros(zeros + n * zb if zeros != 0 else 0, zb, rows, first, groups, scratch)
                byte = k * stored_bits // 8
                unpack_slab(
                    w + byte, wb, h + k // 8, hb, rows, width * stored_bits // 8,
                    group_size, shift_bytes, scratch,
                )  # fmt: skip
                # While tokens meet this slab, the next one comes from memory, row by row.
                ahead = 0 if final else k + SLAB
                left = G * group_size - ahead
                if left > SLAB:
                    left = SLAB
                row = n + RUN if final else n
                asked = 0
                for t in range(0, tokens, T):
                    while asked * tokens < RUN * t:
                        i = row + asked
                        ask_for(
                            weight + i * wb + ahead * stored_bits // 8, high + i * hb + ahead // 8,
                            scales + i * sb + 2 * (ahead // group_size), zeros + i * zb,
                            left, group_size,
                        )  # fmt: skip
                        asked += 1
                    count = tokens - t
                    if count > T:
                        count = T
                    for i in range(count):  # where y's rows begin in one set of the L1 cache
                        for j in range(0, ROW_BYTES, _LINE):
                            prefetch(y + (t + i) * yb + 4 * n + j)
                    f = tile_zero()
                    token = t * xb
                    a, u, b = x + token + k, unpacked, token + 4 * (k // block)
                    for g in range(groups):
                        for _ in range(blocks):
                            acc = tile_start(x_starts + b, xb)
                            for _ in range(steps):
                                acc = tile_dot(acc, u, a, xb)
                                u, a = u + STEPS * ROW_BYTES, a + 4 * STEPS
                            f = tile_fold(
                                f, acc, scratch + _SCALES + g * ROW_BYTES, x_scales + b, xb
                            )
                            b += 4
                    if eight and zeros != 0:
                        for g in range(groups):
                            sums = x_groups + token + 4 * (first + g)
                            f = tile_fma(f, scratch + _EXTRAS + g * ROW_BYTES, sums, xb)
                    tile_store(f, out)
                    finish_tile(
                        out, count, y + t * yb, yb, bias, n, N, factor, onto != 0 or k != 0, final
                    )

    return tiles
