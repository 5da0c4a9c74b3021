"""Activations to int8, in the order in which the products read them.

    q = rint(x * (127 / absmax)), scale = absmax / 127, absmax over blocks of inputs

rint goes to even on ties. Blocks below SMALLEST_ABSMAX become zeros; one that holds a NaN gets a
NaN scale, so that it shows in the product. Layouts: `linear_layout.py`. Work is split over threads
by pieces of a token, so that a single long token is shared too.

The truth: `reference.quantise_activations`.
"""

from __future__ import annotations

import numpy as np

from edgetok.kernels_cpu import linear_layout as layout
from edgetok.kernels_cpu.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.linear_simd import (
    BY_PLANE,
    absolute_bits,
    even_bytes,
    max_i32,
    max_lanes_i32,
    negate_i32,
    odd_bytes,
    sum_lanes_i32,
)
from edgetok.kernels_cpu.simd import (
    LANES,
    VB,
    add_i32,
    dot_u8s8,
    f32_from_bits,
    inline,
    load_f32,
    load_f32_first,
    load_u8,
    mul,
    read_f32,
    read_i64,
    round_i32,
    splat_f32,
    splat_u8,
    store_i32,
    store_i32_u8,
    store_u8,
    write_f32,
    write_i32,
    zero_i32,
)

SMALLEST_ABSMAX = np.float32(1e-36)  # below it 127 / absmax is not a float32
_127 = np.float32(127.0)
_ZERO = np.float32(0.0)
_DECODE_TOKENS = layout.DECODE_TOKENS

_by_plane_2, _by_plane_4 = BY_PLANE[2], BY_PLANE[4]


@inline
def _load_x(address, valid):  # type: ignore[no-untyped-def]
    """LANES inputs, zeros from `valid` on."""
    if valid >= LANES:
        return load_f32(address)
    return load_f32_first(address, valid)


@inline
def _block(x, valid, block, out):  # type: ignore[no-untyped-def]
    """Codes of one block in natural order to `out`; returns its scale and the sum of its codes."""
    largest = zero_i32()
    for i in range(0, block, LANES):
        largest = max_i32(largest, absolute_bits(_load_x(x + 4 * i, valid - i)))
    absmax = f32_from_bits(np.int64(max_lanes_i32(largest)))
    scale, inverse = _ZERO, _ZERO
    if not absmax < SMALLEST_ABSMAX:
        scale, inverse = absmax / _127, _127 / absmax
    factor = splat_f32(inverse)
    total = zero_i32()
    for i in range(0, block, LANES):
        codes = round_i32(mul(_load_x(x + 4 * i, valid - i), factor))
        total = add_i32(total, codes)
        store_i32_u8(out + i, codes)
    return scale, sum_lanes_i32(total)


@inline
def _piece(x, K, first, piece, group_size, block, codes, scales, starts, groups, offset):  # type: ignore[no-untyped-def]
    """Quantise codes first..first + piece into the arrays of one token."""
    for g in range(first // group_size, (first + piece) // group_size):
        group = _ZERO
        for b in range(g * group_size // block, (g + 1) * group_size // block):
            k = b * block
            scale, total = _block(x + 4 * k, K - k, block, codes + k)
            write_f32(scales + 4 * b, scale)
            if starts != 0:
                write_i32(starts + 4 * b, np.int32(-offset * total))
            group += scale * np.float32(total)
        write_f32(groups + 4 * g, group)


@inline
def _order_decode(chunks, codes, scales, first, piece, planes, block, middle):  # type: ignore[no-untyped-def]
    """Chunks of the decode layout from natural codes."""
    per_lane = 4 * planes
    width = planes * VB
    for c in range(first // width, (first + piece) // width):
        k = c * width
        natural = codes + k
        chunk = chunks + k // planes * (planes + 2)
        if planes == 1:
            store_u8(chunk, load_u8(natural))
        else:
            a, b = load_u8(natural), load_u8(natural + VB)
            if planes == 2:
                store_u8(chunk, even_bytes(a, b))
                store_u8(chunk + VB, odd_bytes(a, b))
            else:
                c, d = load_u8(natural + 2 * VB), load_u8(natural + 3 * VB)
                even, even_high = even_bytes(a, b), even_bytes(c, d)
                odd, odd_high = odd_bytes(a, b), odd_bytes(c, d)
                store_u8(chunk, even_bytes(even, even_high))
                store_u8(chunk + VB, even_bytes(odd, odd_high))
                store_u8(chunk + 2 * VB, odd_bytes(even, even_high))
                store_u8(chunk + 3 * VB, odd_bytes(odd, odd_high))
        sums = zero_i32()
        for plane in range(planes):
            sums = dot_u8s8(sums, splat_u8(middle), load_u8(chunk + plane * VB))
        lanes = chunk + planes * VB
        for lane in range(LANES):
            scale = read_f32(scales + 4 * ((k + lane * per_lane) // block))
            write_f32(lanes + 4 * lane, scale)
        store_i32(lanes + VB, negate_i32(sums))


@inline
def _order_tile(codes, first, piece, planes):  # type: ignore[no-untyped-def]
    """The tile layout's order, in place."""
    for k in range(codes + first, codes + first + piece, VB):
        if planes == 2:
            store_u8(k, _by_plane_2(load_u8(k)))
        elif planes == 4:
            store_u8(k, _by_plane_4(load_u8(k)))


@kernel
def quantise(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Int8 activations of all tokens, or of the last one, from float32 [T, x_stride]."""
    x = read_i64(instr + 8 * layout.QUANTISE_X)
    qx = read_i64(instr + 8 * layout.QUANTISE_QX)
    K = read_i64(instr + 8 * layout.QUANTISE_K)
    group_size = read_i64(instr + 8 * layout.QUANTISE_GROUP) & 0xFFFFFFFF
    block = read_i64(instr + 8 * layout.QUANTISE_GROUP) >> 32
    bits = read_i64(instr + 8 * layout.QUANTISE_BITS)
    x_bytes = 4 * read_i64(instr + 8 * layout.QUANTISE_X_STRIDE)
    tokens = read_i64(ctx + 8 * CTX_TOKENS)
    if read_i64(instr + 8 * layout.QUANTISE_LAST) != 0:
        x += (tokens - 1) * x_bytes
        tokens = 1
    planes = 1 if bits == 8 else 2 if bits == 4 else 4
    codes = layout.padded_codes(K, group_size, planes, VB)
    # Whole chunks and whole groups: both are powers of two.
    piece = planes * VB if planes * VB > group_size else group_size
    pieces = codes // piece
    total = tokens * pieces
    for i in range(tid * total // threads, (tid + 1) * total // threads):
        t, first = i // pieces, i % pieces * piece
        row = x + t * x_bytes
        if tokens <= _DECODE_TOKENS:
            token = qx + t * layout.decode_token_bytes(codes, block, group_size, planes)
            scales = token + layout.decode_scales_offset(codes, planes)
            groups = scales + layout.blocks_bytes(codes, block)
            natural = groups + layout.blocks_bytes(codes, group_size)
            _piece(row, K, first, piece, group_size, block, natural, scales, 0, groups, 0)
            middle = 1 << (bits - 1)
            _order_decode(token, natural, scales, first, piece, planes, block, middle)
        else:
            token = qx + t * layout.tile_token_bytes(codes, block, group_size)
            scales = token + codes
            starts = scales + layout.blocks_bytes(codes, block)
            groups = starts + layout.blocks_bytes(codes, block)
            offset = 128 if bits == 8 else 1 << bits
            _piece(row, K, first, piece, group_size, block, token, scales, starts, groups, offset)
            _order_tile(token, first, piece, planes)
