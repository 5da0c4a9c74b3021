"""Queries, scores, softmax and values of up to ROWS query rows over one block of slots.

All arithmetic of a row is independent of the rows beside it and of the thread, so a token's result
does not depend on what it is computed with. Rows are walked four at a time, so that a key or value
that is loaded serves four; rows past the real ones see nothing.

`make` gives the functions for one kind of cache; layout of keys and values: `attention/launch.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import softmax, steps
from edgetok.kernels_cpu.attention.kv_append import absmax
from edgetok.kernels_cpu.attention.launch import BLOCK, KEY_TILE, key_bits, value_bits
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    load_f32_first,
    load_i32,
    prefetch,
    store_f32,
    store_i32_u8,
    write_f32,
    write_i32,
)
from edgetok.kernels_cpu.simd.ops import (
    add,
    max_lanes,
    maximum,
    mul,
    round_i32,
    select_between,
    splat_f32,
    sum_lanes,
    to_f32,
    zero_f32,
)

# The score of a slot that a row may not see. Not -inf: a difference of two must be a number.
UNSEEN = np.float32(-1e30)
_NOTHING_SEEN = np.float32(-1e29)
_LARGEST_WEIGHT = np.float32((1 << steps.WEIGHT_BITS) - 1)
LOG2_E = np.float32(1.4426950408889634)
_STEP = steps.COLUMNS * LANES  # slots


@inline
def power(x: float) -> Any:
    """2^x of one number <= 0, the same bits as in a vector."""
    return max_lanes(softmax.exp2(splat_f32(x)))


@outline
def highest_score(
    s: int, positions: int, low: int, high: int, count: int, cap: float, masked: bool
) -> Any:
    """Cap a row of scores and mask it where `masked`, in place; returns the largest.

    Scores are in units of ln 2, so that the softmax is one of powers of 2.
    """
    if cap != np.float32(0.0):
        for i in range(0, count, LANES):
            v = vmath.tanh(mul(load_f32(s + 4 * i), splat_f32(np.float32(1.0) / cap)))
            store_f32(s + 4 * i, mul(v, splat_f32(cap * LOG2_E)))
    best = splat_f32(UNSEEN)
    if masked:
        for i in range(0, count, _STEP):
            best = softmax.mask_step(
                best, s + 4 * i, positions + 4 * i, low, high, splat_f32(UNSEEN)
            )
    else:
        for i in range(0, count, _STEP):
            best = softmax.max_step(best, s + 4 * i)
    return max_lanes(best)


def _make_query(bits: int) -> Any:
    # What the integer dot product leaves out: the keys' offset, or at 4 bits their base.
    offset_factor = np.float32({4: 1, 6: -steps.KEY_OFFSET_6}.get(bits, -steps.KEY_OFFSET))

    @outline
    def query_int(
        x: int, out: int, offset: int, factor: int, size: int, padded: int, scale: float
    ) -> None:
        """Quantise a query: codes to `out`, a multiple of their sum to `offset`, their scale."""
        largest = absmax(x, size)
        inverse = np.float32(127.0) / largest if largest > np.float32(1e-30) else np.float32(0.0)
        total = zero_f32()
        for i in range(0, padded, LANES):
            count = max(np.int64(0), min(LANES, size - i))
            code = round_i32(mul(load_f32_first(x + 4 * i, count), splat_f32(inverse)))
            store_i32_u8(out + i, code)
            total = add(total, to_f32(code))
        write_i32(offset, np.int32(offset_factor * sum_lanes(total)))
        write_f32(factor, largest * np.float32(1.0 / 127.0) * scale)

    @outline
    def query_float(
        x: int, out: int, offset: int, factor: int, size: int, padded: int, scale: float
    ) -> None:
        """Copy a query, multiplied by `scale`; the rest of `padded` dims is 0."""
        for i in range(0, padded, LANES):
            count = max(np.int64(0), min(LANES, size - i))
            store_f32(out + 4 * i, mul(load_f32_first(x + 4 * i, count), splat_f32(scale)))

    return query_int if steps.is_integer(bits) else query_float


def _make_scores(bits: int) -> Any:
    zero = steps.zeros(bits, steps.ROWS * steps.COLUMNS)
    step, store = steps.score_step(bits), steps.score_store(bits)
    dims = steps.dims_at_once(bits)
    query_bytes = 1 if steps.is_integer(bits) else 4
    unit = 4 if steps.is_integer(bits) else bits // 8  # bytes of a slot that lie together
    step_bytes = dims * bits // 8  # of a slot, of `dims` dims

    @outline
    def scores(
        keys: int,
        scales: int,
        q: int,
        offset: int,
        factor: int,
        out: int,
        soon: int,
        rows: int,
        count: int,
        padded: int,
    ) -> None:
        """out[r, s] = query r times key s, for `count` slots, a multiple of SLOT_TILE.

        As many bytes as the keys are asked for from `soon` on.
        """
        tile = padded * KEY_TILE * bits // 8
        lines = steps.COLUMNS * step_bytes * LANES
        column = tile if LANES == KEY_TILE else unit * LANES
        for r in range(0, rows, steps.ROWS):
            for s in range(0, count, steps.COLUMNS * LANES):
                k = keys + tile * (s // KEY_TILE) + unit * (s % KEY_TILE)
                x = q + 4 * padded * r
                f = zero()
                for _ in range(0, padded, dims):
                    if r == 0:
                        if bits == 6:
                            for line in range(0, lines, steps.LINE_BYTES):
                                prefetch(soon + line)
                        else:
                            steps.prefetch_lines(soon)
                        soon += lines
                    f = step(f, k, column, x, 4 * padded)
                    k += step_bytes * KEY_TILE
                    x += query_bytes * dims
                to = out + 4 * (BLOCK * r + s)
                store(f, to, 4 * BLOCK, factor + 4 * r, offset + 4 * r, scales + 4 * s)

    return scores


def _make_weigh(bits: int) -> Any:
    integer = steps.is_integer(bits)

    @outline
    def weigh(
        s: int, scales: int, normed: int, kept: int, codes: int, base: int, count: int, high: float
    ) -> Any:
        """Replace scores by 2^(score - high), stored at `kept` too where it is not 0.

        Integer values take their weights, times the slots' `normed` scales, from `codes`; at 4 bits
        the sum of weight * base goes to `base`.

        Returns:
            The sum of the weights.
        """
        # Where nothing is seen every score is UNSEEN, and must not count as the largest.
        most = splat_f32(max(high, _NOTHING_SEEN))
        total = zero_f32()
        bases = zero_f32()
        for i in range(0, count, _STEP):
            e = softmax.weights_step(s + 4 * i, most)
            total = softmax.add_step(total, e)
            if kept != 0:
                softmax.store_step(kept + 4 * i, e)
            if integer:
                softmax.codes_step(codes + steps.WEIGHT_STRIDE * i, normed + 4 * i, e)
            else:
                softmax.store_step(s + 4 * i, e)
            if bits == 4:
                bases = softmax.bases_step(bases, scales + 4 * i, e)
        if bits == 4:
            write_f32(base, sum_lanes(bases))
        return sum_lanes(total)

    return weigh


def _make_norm_scales(bits: int) -> Any:
    @outline
    def norm_scales(
        scales: int, out: int, count: int, where: int, low: int, high: int, masked: bool
    ) -> Any:
        """Scales times such a number that the largest becomes the largest integer weight.

        Where `masked`, scales of slots at positions outside low..high are 0: what a row does not
        see, tokens after it or left over from before, changes no bit of its result.

        Returns:
            What integer sums have to be multiplied by.
        """
        if bits > 8:
            return np.float32(1.0)
        largest = zero_f32()
        for i in range(0, count, LANES):
            v = load_f32(scales + 4 * i)
            if bits == 4:
                v = steps.low_bf16(load_i32(scales + 4 * i))
            if masked:
                v = select_between(load_i32(where + 4 * i), low, high, v, zero_f32())
            largest = maximum(v, largest)
            store_f32(out + 4 * i, v)
        most = max_lanes(largest)
        inverse = _LARGEST_WEIGHT / most if most > np.float32(1e-30) else np.float32(0.0)
        for i in range(0, count, LANES):
            store_f32(out + 4 * i, mul(load_f32(out + 4 * i), splat_f32(inverse)))
        return most * (np.float32(1.0) / _LARGEST_WEIGHT)

    return norm_scales


def _make_values(bits: int) -> Any:
    zero = steps.zeros(bits, steps.value_sums(bits))
    step, store = steps.value_step(bits), steps.value_store(bits)
    integer = steps.is_integer(bits)
    slots = steps.slots_at_once(bits)
    row = 2 * BLOCK if integer else 4 * BLOCK  # bytes of a row of weights
    stride = steps.WEIGHT_STRIDE if integer else 4

    @outline
    def values(
        v: int,
        weights: int,
        keep: int,
        factor: int,
        base: int,
        acc: int,
        soon: int,
        rows: int,
        count: int,
        padded: int,
    ) -> None:
        """acc[r] = acc[r] * keep[r] + factor[r] * sum of `count` slots' values times weights."""
        step_bytes = slots * padded * bits // 8
        lines = 2 * LANES * slots * bits // 8  # of `soon` in a step: all bytes in all steps
        for r in range(0, rows, steps.ROWS):
            for n in range(0, (padded + 1) // 2, LANES):
                if bits == 4:  # dim i in the low and dim i + 16 in the high half of a byte
                    i = n // 16 * 32 + n % 16
                    j = i + 16
                    first = v + 4 * n
                    second = first
                else:
                    i = 2 * n
                    # Twice the same where one vector is left: it is stored twice, not added twice.
                    j = i + LANES if i + LANES < padded else i
                    first = v + slots * bits // 8 * i
                    second = v + slots * bits // 8 * j
                f = zero()
                w = weights + row * r
                for _ in range(0, count, slots):
                    if r == 0:
                        for line in range(0, lines, steps.LINE_BYTES):
                            prefetch(soon + line)
                        soon += lines
                    f = step(f, first, second, w, row)
                    first += step_bytes
                    second += step_bytes
                    w += stride * slots
                to = acc + 4 * padded * r
                at = 4 * r
                store(f, to + 4 * i, to + 4 * j, 4 * padded, keep + at, factor + at, base + at)

    return values


def make(kv_bits: int) -> SimpleNamespace:
    """The functions that differ from one kind of cache to another; see each."""
    of_keys, of_values = key_bits(kv_bits), value_bits(kv_bits)
    return SimpleNamespace(
        query=_make_query(of_keys),
        scores=_make_scores(of_keys),
        norm_scales=_make_norm_scales(of_values),
        weigh=_make_weigh(of_values),
        values=_make_values(of_values),
    )
