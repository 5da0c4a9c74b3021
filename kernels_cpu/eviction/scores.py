"""Scores of the policy `retain`: |k - mean key|^2 |v|, 0 where the first factor is an outlier.

Definition and reasons: `edgetok/cache/policies/retain.py`. Sums are float32, of LANES partial sums.
Keys are read twice (their mean, then distances from it), values once. Rotated keys have the same
distances, unless factors were multiplied by before: then they are rotated back. Slots: `launch.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import EMPTY, is_rotated, key_bits, value_bits
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.elementwise.selection import nth_smallest
from edgetok.kernels_cpu.eviction.launch import (
    EV_FACTOR,
    EV_HEADS,
    EV_PAGES,
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
    field_f32,
    high_bfloat16,
    keep_first,
    key_base,
    key_dim,
    key_scale,
    low_bfloat16,
    page_at,
    rotate_back,
    signed_byte_f32,
    where_held,
)
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    load_f16,
    load_f32,
    load_i32,
    read_f32,
    read_i32,
    read_i64,
    store_f32,
    write_f32,
)
from edgetok.kernels_cpu.simd.ops import (
    add,
    fma,
    mul,
    splat_f32,
    splat_i32,
    sub,
    sum_lanes,
    zero_f32,
)

_MOST = np.float32(6.0)  # as `retain.py` says


def make(kv_bits: int) -> Any:
    """The kernel for one kind of slot."""
    rotated = is_rotated(kv_bits)
    of_keys, of_values = key_bits(kv_bits), value_bits(kv_bits)

    @outline
    def means(pages: int, page_slots: int, positions: int, slots: int, dims: int, padded: int,
              sums: int, mean: int) -> Any:  # fmt: skip
        """Write the mean of each dim, float32 [dims]; how many keys there are, as a float32."""
        for d in range(dims):
            store_f32(sums + 4 * LANES * d, zero_f32())
        held = zero_f32()
        one = splat_f32(np.float32(1.0))
        for s in range(0, slots, LANES):
            at = load_i32(positions + 4 * s)
            if any_held(at) == 0:
                continue
            held = add(held, where_held(at, one))
            page, slot = page_at(pages, page_slots, s), s % page_slots
            scale, base = key_scale(of_keys, page, slot), key_base(of_keys, page, slot)
            for d in range(dims):
                key = key_dim(of_keys, page, padded, slot, d, scale, base)
                key = where_held(at, key)
                to = sums + 4 * LANES * d
                store_f32(to, add(load_f32(to), key))
        n = max(sum_lanes(held), np.float32(1.0))
        for d in range(dims):
            total = sum_lanes(load_f32(sums + 4 * LANES * d))
            write_f32(mean + 4 * d, total / n)
        return sum_lanes(held)

    @outline
    def distances(pages: int, page_slots: int, positions: int, slots: int, dims: int, padded: int,
                  mean: int, out: int) -> None:  # fmt: skip
        """out = |k - mean|^2; 0 for empty slots."""
        for s in range(0, slots, LANES):
            at = load_i32(positions + 4 * s)
            total = zero_f32()
            if any_held(at) != 0:
                page, slot = page_at(pages, page_slots, s), s % page_slots
                scale, base = key_scale(of_keys, page, slot), key_base(of_keys, page, slot)
                for d in range(dims):
                    key = key_dim(of_keys, page, padded, slot, d, scale, base)
                    away = sub(key, splat_f32(read_f32(mean + 4 * d)))
                    total = fma(away, away, total)
            store_f32(out + 4 * s, where_held(at, total))

    @outline
    def plain_distances(pages: int, page_slots: int, positions: int, slots: int, dims: int,
                        padded: int, mean: int, factor: int, block: int, x: int,
                        out: int) -> None:  # fmt: skip
        """The same as `distances`, of keys rotated back and divided by their factors."""
        inverse = splat_f32(np.float32(1.0) / np.float32(block))
        for s in range(0, slots, LANES):
            at = load_i32(positions + 4 * s)
            total = zero_f32()
            if any_held(at) != 0:
                page, slot = page_at(pages, page_slots, s), s % page_slots
                scale, base = key_scale(of_keys, page, slot), key_base(of_keys, page, slot)
                for d in range(dims):
                    key = key_dim(of_keys, page, padded, slot, d, scale, base)
                    store_f32(x + 4 * LANES * d, sub(key, splat_f32(read_f32(mean + 4 * d))))
                rotate_back(x, dims, block)
                for d in range(dims):
                    undo = splat_f32(np.float32(1.0) / read_f32(factor + 4 * d))
                    away = mul(load_f32(x + 4 * LANES * d), undo)
                    total = fma(away, away, total)
            total = mul(total, inverse)
            store_f32(out + 4 * s, where_held(at, total))

    @inline
    def square(page: int, slot: int, lane: int, dims: int, padded: int) -> Any:
        """Sum of squares of a value; `lane` is slot % 4."""
        total = zero_f32()
        values = read_i64(page + 8)
        if of_values == 4:
            words_at = values + (slot - lane) * padded // 2
            word = splat_i32(read_i32(read_i64(page + 24) + 4 * slot))
            scale, base = low_bfloat16(word), high_bfloat16(word)
            for w in range(0, padded // 2, LANES):
                words = load_i32(words_at + 4 * w)
                first = dims - (32 * (w // 16) + w % 16)
                low = fma(field_f32(words, 8 * lane, 15), scale, base)
                low = keep_first(low, first)
                high = fma(field_f32(words, 8 * lane + 4, 15), scale, base)
                high = keep_first(high, first - 16)
                total = fma(high, high, fma(low, low, total))
            return sum_lanes(total)
        if of_values == 8:
            words_at = values + (slot - lane) * padded
            for d in range(0, padded, LANES):
                v = signed_byte_f32(load_i32(words_at + 4 * d), lane)
                total = fma(v, v, total)
            scale = read_f32(read_i64(page + 24) + 4 * slot)
            return sum_lanes(total) * scale * scale
        for d in range(0, padded, LANES):
            at = slot * padded + d
            v = load_f16(values + 2 * at) if of_values == 16 else load_f32(values + 4 * at)
            total = fma(v, v, total)
        return sum_lanes(total)

    @outline
    def weigh(pages: int, page_slots: int, positions: int, slots: int, dims: int, padded: int,
              limit: float, out: int) -> None:  # fmt: skip
        """out *= |v|, 0 where it is above `limit`."""
        for s in range(slots):
            if read_i32(positions + 4 * s) == EMPTY:
                continue
            far = read_f32(out + 4 * s)
            if far > limit:
                write_f32(out + 4 * s, np.float32(0.0))
                continue
            page, slot = page_at(pages, page_slots, s), s % page_slots
            write_f32(out + 4 * s, far * math.sqrt(square(page, slot, s % 4, dims, padded)))

    @outline
    def median(positions: int, slots: int, scores: int, copy: int) -> Any:
        """The median of the scores of slots that hold a token, of which there is one at least."""
        n = 0
        for s in range(slots):
            if read_i32(positions + 4 * s) != EMPTY:
                write_f32(copy + 4 * n, read_f32(scores + 4 * s))
                n += 1
        middle = nth_smallest(copy, n, n // 2)
        if n % 2 == 0:
            middle = (middle + nth_smallest(copy, n, n // 2 - 1)) * np.float32(0.5)
        return middle

    @outline
    def retain(instr: int, ctx: int, tid: int, threads: int) -> None:
        heads = read_i64(instr + 8 * EV_HEADS)
        slots = read_i64(instr + 8 * EV_SLOTS)
        page_slots = read_i64(instr + 8 * SCORE_PAGE_SLOTS)
        dims = read_i64(instr + 8 * SCORE_DIMS)
        padded = read_i64(instr + 8 * SCORE_PADDED)
        block = read_i64(instr + 8 * SCORE_BLOCK)
        sums = read_i64(instr + 8 * EV_SCRATCH) + tid * read_i64(instr + 8 * EV_SCRATCH_BYTES)
        mean = sums + 4 * LANES * dims
        copy = mean + 4 * dims
        for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
            record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
            pages = read_i64(record + 8 * EV_PAGES)
            positions = read_i64(record + 8 * EV_POSITIONS)
            out = read_i64(instr + 8 * SCORE_OUT) + 4 * slots * head
            n = means(pages, page_slots, positions, slots, dims, padded, sums, mean)
            factor = read_i64(record + 8 * EV_FACTOR)
            if rotated and factor != 0:
                plain_distances(
                    pages,
                    page_slots,
                    positions,
                    slots,
                    dims,
                    padded,
                    mean,
                    factor,
                    block,
                    sums,
                    out,
                )
            else:
                distances(pages, page_slots, positions, slots, dims, padded, mean, out)
            if n > np.float32(0.0):
                limit = _MOST * median(positions, slots, out, copy)
                weigh(pages, page_slots, positions, slots, dims, padded, limit, out)

    return retain
