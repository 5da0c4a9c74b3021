"""Products with float32 activations, tile by tile, accumulated in float32.

A tile of RUN rows by a slab of inputs is brought into scratch as float32, one input of all its rows
after the other (a lane is a row): (code - zero) * scale, exact, or the float weights. Then it meets
all tokens.

Quantised weights take this path for exact verification, whatever the number of tokens: a row's sum
goes through QUANTISED_SLAB inputs one by one. Float weights take it for many tokens, and add as
`linear/float_rows.py` does for few, so that a token has the same bits alone and beside others:
inputs k, k + CHAINS, k + 2 * CHAINS, ... of a slab are one sum, and the CHAINS sums are added in
their order. Slabs are added to y.

The truth: `reference_linear.matmul_nbits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.linear import layout
from edgetok.kernels_cpu.linear.scales import make_read_numbers
from edgetok.kernels_cpu.linear.tile_shape import FLOAT_T, ROW_BYTES, RUN, R
from edgetok.kernels_cpu.linear.tile_steps import tile_add_to, tile_fma, tile_store, tile_zero
from edgetok.kernels_cpu.linear.tile_unpack import (
    look_up_floats,
    unpack_floats,
)
from edgetok.kernels_cpu.linear.tiles import finish_tile
from edgetok.kernels_cpu.linear.transposing import transpose_floats, transpose_words
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, VB, inline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    prefetch,
    read_i64,
    read_u8,
    store_f32,
    write_f32,
)
from edgetok.kernels_cpu.simd.ops import splat_f32

# Inputs: 32 KB of float32 weights with vectors of 64 bytes.
QUANTISED_SLAB = 256
# Float weights: sums of a slab, and its inputs; 64 KB, so that adding sums does not count.
CHAINS = 16
FLOAT_SLAB = 512
_STEPS = 4  # inputs in one operation
_LINE = 64  # bytes that a prefetch brings
_GROUPS = max(QUANTISED_SLAB // 16, LANES)
# From one chain's weights to the next one's, an odd number of rows: other sets of the cache.
_CHAIN_BYTES = (FLOAT_SLAB // CHAINS + 1) * ROW_BYTES

# Regions of a thread's scratch.
_WORDS = 0
_HIGHS = LANES * VB
_SCALES = 2 * LANES * VB
_ZEROS = _SCALES + _GROUPS * ROW_BYTES
_OUT = _ZEROS + _GROUPS * ROW_BYTES
_WEIGHTS = _OUT + FLOAT_T * ROW_BYTES
if _WEIGHTS + max(QUANTISED_SLAB * ROW_BYTES, CHAINS * _CHAIN_BYTES) > layout.SCRATCH_BYTES:
    raise ValueError("a tile does not fit the scratch")


_read_numbers = make_read_numbers(R)


def _make_fill(bits: int, grouped: bool, table: bool) -> Any:
    """A function that brings inputs k..k + width of RUN rows, starting with row n, to scratch."""
    if bits in (16, 32):
        full, part = (transpose_floats(bits, part, _CHAIN_BYTES) for part in (False, True))
        each = bits // 8

        @inline
        def fill_floats(instr, n, rows, k, width, scratch):  # type: ignore[no-untyped-def]
            weight = read_i64(instr + 8 * layout.MATMUL_QWEIGHT)
            K = read_i64(instr + 8 * layout.MATMUL_K)
            wb = each * K
            # Each row's next slab, or the next tile's first ones, come from memory meanwhile.
            row, ahead = (n, k + FLOAT_SLAB) if k + FLOAT_SLAB < K else (n + RUN, 0)
            for r in range(R):
                skip = r * LANES if rows > r * LANES else 0
                last = rows - 1 - skip
                w, out = weight + (n + skip) * wb + each * k, scratch + _WEIGHTS + r * VB
                ask = weight + (row + r * LANES) * wb + each * ahead
                for i in range(0, width, LANES):
                    if each * i % _LINE == 0:
                        for q in range(LANES):
                            prefetch(ask + q * wb + each * i)
                    to = out + i % CHAINS * _CHAIN_BYTES + i // CHAINS * ROW_BYTES
                    if i + LANES <= width:
                        full(w + each * i, wb, last, to)
                    else:
                        part(w + each * i, wb, last, to, width - i)

        return fill_floats

    planar = bits in layout.HIGH_BITS
    stored_bits, high_bits = layout.LOW_BITS[bits], layout.HIGH_BITS.get(bits, 0)
    part_of = stored_bits // max(high_bits, 1)
    zero_bits = 8 if bits == 3 else bits
    zero_mask = (1 << zero_bits) - 1
    middle = np.float32(1 << (bits - 1))
    unpack = look_up_floats() if table else unpack_floats(bits)
    unpack_offset = unpack if table else unpack_floats(bits, True)
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
            G * group_size * high_bits // 8,
            (G * zero_bits + 7) // 8,
        )
        sb, supers, each = 2 * G, 0, 0
        if grouped:
            supers = read_i64(instr + 8 * layout.MATMUL_SUPERS)
            if supers != 0:
                sb, each = G, 4 if zeros != 0 else 2
        ub = G * group_size // layout.SUPER_GROUP * each
        place = supers + n * ub if supers != 0 else 0
        first = k // group_size
        groups = (width + group_size - 1) // group_size
        words = scratch + _WORDS
        _read_numbers(
            scales + n * sb, sb, place, ub, each, group_size, rows, first, groups, words,
            scratch + _SCALES,
        )  # fmt: skip
        zero_bytes = 0
        if grouped and zeros != 0:
            zero_bytes = ROW_BYTES
            place = supers + n * ub + 2 if supers != 0 else 0
            _read_numbers(
                zeros + n * sb, sb, place, ub, each, group_size, rows, first, groups, words,
                scratch + _ZEROS,
            )  # fmt: skip
        elif zeros == 0:
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
            h = high + (n + skip) * hb + k * high_bits // 8
            out = scratch + _WEIGHTS + r * VB
            for start in range(0, nbytes, VB):
                left = nbytes - start
                if left > VB:
                    left = VB
                transpose_words(w + start, wb, last, left, scratch + _WORDS)
                if planar:
                    highs = scratch + _HIGHS
                    transpose_words(h + start // part_of, hb, last, left // part_of, highs)
                for j in range(left // 4):
                    g = (start + 4 * j) * (8 // stored_bits) // group_size
                    word = words + j * VB
                    above = h if table else scratch + _HIGHS + j // part_of * VB
                    by = j % part_of * (32 // part_of)
                    scale = scratch + _SCALES + g * ROW_BYTES + r * VB
                    zero_at = scratch + _ZEROS + g * zero_bytes + r * VB
                    if grouped and zeros != 0:
                        unpack_offset(word, above, by, scale, zero_at, out)
                    else:
                        unpack(word, above, by, scale, zero_at, out)
                    out += word_codes * ROW_BYTES

    return fill


def make_float_tiles(bits: int, grouped: bool = False, table: bool = False) -> Any:
    """The kernel body for weights of `bits` and float32 activations.

    Args:
        bits: of the weights.
        grouped: whether groups may have offsets or super-scales in place of zero points.
        table: as for `rows.make_rows`.
    """
    fill = _make_fill(bits, grouped, table)
    chains, slab = (CHAINS, FLOAT_SLAB) if bits in (16, 32) else (1, QUANTISED_SLAB)

    def make_meet(tokens: int) -> Any:
        """A function for `tokens` tokens and one slab of a tile's weights."""
        zero = tile_zero(tokens)
        several, fma = (tile_fma(tokens, steps, 4 * chains) for steps in (_STEPS, 1))
        store, add_to = tile_store(tokens), tile_add_to(tokens)

        @inline
        def meet(x, xb, width, weights, out):  # type: ignore[no-untyped-def]
            for chain in range(chains if width > chains else width):
                f = zero()
                a, w = x + 4 * chain, weights + chain * _CHAIN_BYTES
                count = (width - chain + chains - 1) // chains
                for _ in range(count // _STEPS):
                    f = several(f, w, a, xb)
                    w, a = w + _STEPS * ROW_BYTES, a + _STEPS * 4 * chains
                for _ in range(count % _STEPS):
                    f = fma(f, w, a, xb)
                    w, a = w + ROW_BYTES, a + 4 * chains
                if chain == 0:
                    store(f, out)
                else:
                    add_to(f, out)

        return meet

    meet, meet_one = make_meet(FLOAT_T), make_meet(1)

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
        out, weights = scratch + _OUT, scratch + _WEIGHTS
        blocks = tokens // FLOAT_T * FLOAT_T
        count = (N + RUN - 1) // RUN
        for tile in range(tid * count // threads, (tid + 1) * count // threads):
            n = tile * RUN
            for k in range(0, K, slab):
                width = K - k
                if width > slab:
                    width = slab
                fill(instr, n, N - n, k, width, scratch)
                later, final = onto != 0 or k != 0, k + width == K
                for t in range(0, blocks, FLOAT_T):
                    meet(x + t * xb + 4 * k, xb, width, weights, out)
                    finish_tile(out, FLOAT_T, y + t * yb, yb, bias, n, N, factor, later, final)
                for t in range(blocks, tokens):  # x has no rows beyond the last token's
                    meet_one(x + t * xb + 4 * k, xb, width, weights, out)
                    finish_tile(out, 1, y + t * yb, yb, bias, n, N, factor, later, final)

    return tiles
