"""Scores of the policy `content`: |c - mean c|^2 of keys c rotated back to position 0.

Definition and reasons: `edgetok/cache/policies/content.py`. LANES keys are read together, brought
back to the model's own dims, rotated and summed up; twice, for their mean and for distances from
it: in between they would take as much memory as a cache of 32 bits. Slots: `launch.py`.

Cosines and sines are float32 of angles that are reduced to a quarter of their fraction of a turn,
t = position * frequency / (2 pi), and doubled twice. With fused multiplications the rounding error
of t is added again, so that a late position is as exact as an early one; without them, an error
of 1e-7 t turns is left, which moves no score by more than 1e-3 up to 8,192 positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import is_rotated, key_bits
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.eviction.launch import (
    EV_CENTRE,
    EV_FACTOR,
    EV_FREQUENCIES,
    EV_HEADS,
    EV_PAGES,
    EV_PAIRS,
    EV_POSITIONS,
    EV_RECORD_SLOTS,
    EV_RECORDS,
    EV_SCRATCH,
    EV_SCRATCH_BYTES,
    EV_SLOTS,
    SCORE_BLOCK,
    SCORE_DIMS,
    SCORE_OUT,
    SCORE_PADDED,
    SCORE_PAGE_SLOTS,
)
from edgetok.kernels_cpu.eviction.stored import (
    any_held,
    key_base,
    key_dim,
    key_scale,
    page_at,
    rotate_back,
    where_held,
)
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    load_i32,
    read_f32,
    read_f64,
    read_i64,
    store_f32,
    write_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    add,
    fma,
    mul,
    round_i32,
    splat_f32,
    sub,
    sum_lanes,
    to_f32,
    zero_f32,
)

_TURNS = 0.15915494309189535  # 1 / (2 pi)
# Taylor's series of sine to x^9 and of cosine to x^8, |x| <= pi / 4: they leave 2e-9 and 3e-8.
_QUARTER = np.float32(1.5707963267948966)  # a quarter of a turn, in radians
_S1, _S2, _S3 = np.float32(-1 / 6), np.float32(1 / 120), np.float32(-1 / 5040)
_S4 = np.float32(1 / 362880)
_C1, _C2, _C3 = np.float32(-1 / 2), np.float32(1 / 24), np.float32(-1 / 720)
_C4 = np.float32(1 / 40320)
_ONE, _TWO = np.float32(1.0), np.float32(2.0)


@inline
def _turn_back(x: int, other: int, at: Any, frequency: float) -> None:
    """Rotate LANES pairs (x, other) to position 0 from positions `at`, float32."""
    each = frequency * _TURNS
    high = np.float32(each)
    low = np.float32(each - np.float64(high))
    t = mul(at, splat_f32(high))
    rest = fma(at, splat_f32(high), sub(zero_f32(), t))  # what rounding t lost
    rest = fma(at, splat_f32(low), rest)
    part = add(sub(t, to_f32(round_i32(t))), rest)  # -1/2 to 1/2 turns
    r = mul(part, splat_f32(_QUARTER))
    z = mul(r, r)
    p = fma(z, splat_f32(_S4), splat_f32(_S3))
    p = fma(z, p, splat_f32(_S2))
    p = fma(z, p, splat_f32(_S1))
    sin = fma(mul(z, r), p, r)
    p = fma(z, splat_f32(_C4), splat_f32(_C3))
    p = fma(z, p, splat_f32(_C2))
    p = fma(z, p, splat_f32(_C1))
    cos = fma(z, p, splat_f32(_ONE))
    for _ in range(2):
        doubled = mul(splat_f32(_TWO), mul(sin, cos))
        cos = sub(splat_f32(_ONE), mul(splat_f32(_TWO), mul(sin, sin)))
        sin = doubled
    a, b = load_f32(x), load_f32(other)
    store_f32(x, fma(a, cos, mul(b, sin)))
    store_f32(other, sub(mul(b, cos), mul(a, sin)))


def make(kv_bits: int) -> Any:
    """The kernel for one kind of slot."""
    rotated = is_rotated(kv_bits)
    of_keys = key_bits(kv_bits)

    @outline
    def read_contents(pages: int, page_slots: int, at: int, s: int, dims: int, padded: int,
                      block: int, record: int, x: int) -> None:  # fmt: skip
        """Write LANES keys from slot `s` on, rotated back, float32 [dims, LANES] at `x`."""
        page, slot = page_at(pages, page_slots, s), s % page_slots
        scale, base = key_scale(of_keys, page, slot), key_base(of_keys, page, slot)
        for d in range(dims):
            store_f32(x + 4 * LANES * d, key_dim(of_keys, page, padded, slot, d, scale, base))
        if rotated:
            rotate_back(x, dims, block)
            root = np.float32(1.0) / np.float32(math.sqrt(np.float32(block)))
            centre = read_i64(record + 8 * EV_CENTRE)
            factor = read_i64(record + 8 * EV_FACTOR)
            for d in range(dims):
                undo, middle = root, np.float32(0.0)
                if factor != 0:
                    undo = root / read_f32(factor + 4 * d)
                    middle = read_f32(centre + 4 * d)
                v = fma(load_f32(x + 4 * LANES * d), splat_f32(undo), splat_f32(middle))
                store_f32(x + 4 * LANES * d, v)
        pairs = read_i64(record + 8 * EV_PAIRS)
        frequencies = read_i64(record + 8 * EV_FREQUENCIES)
        positions = to_f32(load_i32(at))
        for i in range(pairs):
            frequency = read_f64(frequencies + 8 * i)
            _turn_back(x + 4 * LANES * i, x + 4 * LANES * (i + pairs), positions, frequency)

    @outline
    def content(instr: int, ctx: int, tid: int, threads: int) -> None:
        heads = read_i64(instr + 8 * EV_HEADS)
        slots = read_i64(instr + 8 * EV_SLOTS)
        page_slots = read_i64(instr + 8 * SCORE_PAGE_SLOTS)
        dims = read_i64(instr + 8 * SCORE_DIMS)
        padded = read_i64(instr + 8 * SCORE_PADDED)
        block = read_i64(instr + 8 * SCORE_BLOCK)
        x = read_i64(instr + 8 * EV_SCRATCH) + tid * read_i64(instr + 8 * EV_SCRATCH_BYTES)
        sums = x + 4 * LANES * dims
        mean = sums + 4 * LANES * dims
        for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
            record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
            pages = read_i64(record + 8 * EV_PAGES)
            positions = read_i64(record + 8 * EV_POSITIONS)
            out = read_i64(instr + 8 * SCORE_OUT) + 4 * slots * head
            for d in range(dims):
                store_f32(sums + 4 * LANES * d, zero_f32())
            held = zero_f32()
            for s in range(0, slots, LANES):
                at = load_i32(positions + 4 * s)
                if any_held(at) == 0:
                    continue
                held = add(held, where_held(at, splat_f32(_ONE)))
                read_contents(
                    pages, page_slots, positions + 4 * s, s, dims, padded, block, record, x
                )
                for d in range(dims):
                    v = where_held(at, load_f32(x + 4 * LANES * d))
                    store_f32(sums + 4 * LANES * d, add(load_f32(sums + 4 * LANES * d), v))
            n = max(sum_lanes(held), _ONE)
            for d in range(dims):
                write_f32(mean + 4 * d, sum_lanes(load_f32(sums + 4 * LANES * d)) / n)
            for s in range(0, slots, LANES):
                at = load_i32(positions + 4 * s)
                total = zero_f32()
                if any_held(at) != 0:
                    read_contents(
                        pages, page_slots, positions + 4 * s, s, dims, padded, block, record, x
                    )
                    for d in range(dims):
                        away = sub(load_f32(x + 4 * LANES * d), splat_f32(read_f32(mean + 4 * d)))
                        total = fma(away, away, total)
                store_f32(out + 4 * s, where_held(at, total))

    return content
