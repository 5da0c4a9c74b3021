"""Stored keys rotated to other positions, in place: read, rotated in float32, rounded anew.

    (a, b) = (k[i], k[i + R / 2]);  k[i] = a cos - b sin;  k[i + R / 2] = b cos + a sin

with the cosine and sine of difference times frequency (`simd/math64.py`). Keys of 4 to 8 bits are
transformed back before and again after (`attention/hadamard.py`), by the head's constants, too.
Slots: `launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import kv_append
from edgetok.kernels_cpu.attention.hadamard import prepare, turn_head
from edgetok.kernels_cpu.attention.launch import REST_KEY, is_rotated, key_bits
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.eviction.launch import (
    EV_CENTRE,
    EV_FACTOR,
    EV_FREQUENCIES,
    EV_HEADS,
    EV_PAGES,
    EV_PAIRS,
    EV_RECORD_SLOTS,
    EV_RECORDS,
    EV_REST,
    EV_SCRATCH,
    EV_SCRATCH_BYTES,
    EV_SLOTS,
    ROTATE_BLOCK,
    ROTATE_BY,
    ROTATE_DIMS,
    ROTATE_PADDED,
    ROTATE_PAGE_SLOTS,
    ROTATE_REST,
    ROTATE_SCALE,
)
from edgetok.kernels_cpu.eviction.stored import key_at, page_at
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.math64 import cos_of, quarter_turns, sin_of, within_a_quarter
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    read_f32,
    read_f64,
    read_i32,
    read_i64,
    write_f32,
)


@outline
def _angles(by: int, frequencies: int, pairs: int, cos: int, sin: int) -> None:
    for i in range(pairs):
        angle = np.float64(by) * read_f64(frequencies + 8 * i)
        n = quarter_turns(angle)
        r = within_a_quarter(angle, n)
        write_f32(cos + 4 * i, np.float32(cos_of(n, r)))
        write_f32(sin + 4 * i, np.float32(sin_of(n, r)))


@outline
def _turn(x: int, pairs: int, cos: int, sin: int) -> None:
    for i in range(pairs):
        c = read_f32(cos + 4 * i)
        s = read_f32(sin + 4 * i)
        a = read_f32(x + 4 * i)
        b = read_f32(x + 4 * (i + pairs))
        write_f32(x + 4 * i, a * c - b * s)
        write_f32(x + 4 * (i + pairs), b * c + a * s)


@outline
def _restore(x: int, centre: int, factor: int, dims: int) -> None:
    """The inverse of `prepare`."""
    for d in range(dims):
        at = x + 4 * d
        write_f32(at, read_f32(at) / read_f32(factor + 4 * d) + read_f32(centre + 4 * d))


def make(kv_bits: int) -> Any:
    """The kernel for one kind of slot."""
    bits = key_bits(kv_bits)
    store = kv_append.STORE_KEY[bits]
    rotated = is_rotated(kv_bits)

    @outline
    def read_key(page: int, padded: int, slot: int, dims: int, x: int) -> None:
        for d in range(dims):
            write_f32(x + 4 * d, key_at(bits, page, padded, slot, d))

    @outline
    def store_key(x: int, dims: int, padded: int, keys: int, scales: int, slot: int) -> None:
        store(x, dims, padded, keys, scales, slot)

    @outline
    def turn_stored(x: int, pairs: int, cos: int, sin: int, centre: int, factor: int, dims: int,
                    block: int, scale: float) -> None:  # fmt: skip
        """Turn a key that is as slots hold it."""
        if rotated:
            turn_head(x, dims, block, scale)
            if factor != 0:
                _restore(x, centre, factor, dims)
        _turn(x, pairs, cos, sin)
        if rotated:
            if factor != 0:
                prepare(x, centre, factor, dims)
            turn_head(x, dims, block, scale)

    @outline
    def rotate(instr: int, ctx: int, tid: int, threads: int) -> None:
        slots = read_i64(instr + 8 * EV_SLOTS)
        heads = read_i64(instr + 8 * EV_HEADS)
        page_slots = read_i64(instr + 8 * ROTATE_PAGE_SLOTS)
        dims = read_i64(instr + 8 * ROTATE_DIMS)
        padded = read_i64(instr + 8 * ROTATE_PADDED)
        block = read_i64(instr + 8 * ROTATE_BLOCK)
        scale = f32_from_bits(read_i64(instr + 8 * ROTATE_SCALE))
        rest_by = read_i64(instr + 8 * ROTATE_REST)
        x = read_i64(instr + 8 * EV_SCRATCH) + tid * read_i64(instr + 8 * EV_SCRATCH_BYTES)
        cos = x + 4 * dims
        sin = cos + 4 * dims
        for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
            record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
            pairs = read_i64(record + 8 * EV_PAIRS)
            if pairs == 0:
                continue
            frequencies = read_i64(record + 8 * EV_FREQUENCIES)
            centre = read_i64(record + 8 * EV_CENTRE)
            factor = read_i64(record + 8 * EV_FACTOR)
            pages = read_i64(record + 8 * EV_PAGES)
            all_by = read_i64(instr + 8 * ROTATE_BY) + 4 * slots * head
            known = np.int64(0)  # neighbours often move alike
            for s in range(slots):
                by = np.int64(read_i32(all_by + 4 * s))
                if by == 0:
                    continue
                if by != known:
                    _angles(by, frequencies, pairs, cos, sin)
                    known = by
                page, slot = page_at(pages, page_slots, s), s % page_slots
                read_key(page, padded, slot, dims, x)
                turn_stored(x, pairs, cos, sin, centre, factor, dims, block, scale)
                store_key(x, dims, padded, read_i64(page), read_i64(page + 16), slot)
            rest = read_i64(record + 8 * EV_REST)
            if rest != 0 and rest_by != 0:
                _angles(rest_by, frequencies, pairs, cos, sin)
                mean = rest + 4 * REST_KEY
                turn_stored(mean, pairs, cos, sin, centre, factor, dims, block, scale)

    return rotate
