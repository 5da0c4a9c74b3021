"""A thread's scratch during attention, and how results of chunks are merged.

[ROWS] of each small array, then queries, scores, integer weights, scales, a chunk's result and the
total.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import launch
from edgetok.kernels_cpu.attention import rows as rows_of
from edgetok.kernels_cpu.attention.launch import (
    ATT_CAP,
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_Q,
    ATT_RECORD,
    ATT_SCALE,
    ATT_SINKS,
    BLOCK,
    PAGE_FIELDS,
    PAGE_SLOTS,
    REC_PAGES,
    REC_REST,
    RECORD_SLOTS,
    REST_KEY,
    ROW_BYTES,
    ROWS,
)
from edgetok.kernels_cpu.program.abi import (
    PART_CHUNKS,
    PART_FIRST,
    PART_PARTIALS,
    PART_RECORDS,
)
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_f32,
    read_i64,
    store_f32,
    store_f32_first,
    write_f32,
)
from edgetok.kernels_cpu.simd.ops import fma, max_lanes, mul, splat_f32, sum_lanes, zero_f32

chunk_at = inline(launch.chunk_at)

OFFSET = 0  # int32: see `query_int`
FACTOR = 4 * ROWS  # float32: scale of the query times the attention scale
LOW = 8 * ROWS  # int32: first position that the row sees
HIGH = 12 * ROWS  # int32: last one
MAX = 16 * ROWS  # float32: largest score of the chunk so far
SUM = 20 * ROWS  # float32: sum of exponentials of the chunk so far
TOTAL_MAX = 24 * ROWS
TOTAL_SUM = 28 * ROWS
KEPT = 32 * ROWS  # int64: where the row's weights are kept for attention mass, or 0
KEEP = 40 * ROWS  # float32: what the result of earlier blocks is multiplied by
WEIGHT_FACTOR = 44 * ROWS  # float32: what integer weights are multiplied by
WEIGHT_BASE = 48 * ROWS  # float32: the sum of weights times the values' bases
QUERY = ROW_BYTES * ROWS  # [ROWS, padded] float32, or int8 in the first quarter of each row


@inline
def scores_at(scratch: int, padded: int) -> int:
    """Address of float32 [ROWS, BLOCK], scores and then weights."""
    return scratch + QUERY + 4 * ROWS * padded


@inline
def codes_at(scratch: int, padded: int) -> Any:
    """Address of uint8 [ROWS, 2, BLOCK], both halves of integer weights."""
    return scores_at(scratch, padded) + 4 * ROWS * BLOCK


@inline
def normed_at(scratch: int, padded: int) -> Any:
    """Address of float32 [BLOCK], see `norm_scales`."""
    return codes_at(scratch, padded) + 2 * ROWS * BLOCK


@inline
def result_at(scratch: int, padded: int) -> Any:
    """Address of float32 [ROWS, padded], the result of a chunk."""
    return normed_at(scratch, padded) + 4 * BLOCK


@inline
def total_at(scratch: int, padded: int) -> Any:
    """Address of float32 [ROWS, padded], the merged result."""
    return result_at(scratch, padded) + 4 * ROWS * padded


@inline
def record_at(instr: int, part: int, head: int) -> Any:
    """Address of a KV head's record in the part's cache."""
    first = read_i64(part + 8 * PART_RECORDS) + read_i64(instr + 8 * ATT_RECORD)
    return first + 8 * RECORD_SLOTS * head


@inline
def chunk_count(slots: int) -> int:
    """`launch.chunk_count`."""
    count, begin, size = 0, 0, launch.BLOCK
    while begin < slots:
        size = chunk_at(begin, size)
        begin += size
        count += 1
    return count


@inline
def page_at(record: int, slot: int) -> Any:
    """Address of the fields of the page that holds a slot."""
    return read_i64(record + 8 * REC_PAGES) + 8 * PAGE_FIELDS * (slot // PAGE_SLOTS)


@inline
def partial_at(part: int, head: int, chunk: int, padded: int) -> Any:
    """Address of a query head's result of a chunk, maximum and sum, in a part of one row."""
    index = head * read_i64(part + 8 * PART_CHUNKS) + chunk
    return read_i64(part + 8 * PART_PARTIALS) + 4 * (padded + launch.PARTIAL_EXTRA) * index


@inline
def fill(address: int, value: float, count: int) -> None:
    """`count` float32, a multiple of LANES."""
    for i in range(0, count, LANES):
        store_f32(address + 4 * i, splat_f32(value))


@outline
def begin_total(
    instr: int,
    part: int,
    record: int,
    head: int,
    token: int,
    total: int,
    total_max: int,
    total_sum: int,
    padded: int,
) -> None:
    """Begin the result, maximum and sum of a query head and token: with its sink and its rest.

    Args:
        instr: the attention instruction.
        part: the token's.
        record: of the KV head.
        head: the query head.
        token: of the part.
        total: address of float32 [padded]; 0: only the sum is asked for.
        total_max: address of float32.
        total_sum: likewise.
        padded: dims of `total`.
    """
    sinks = read_i64(instr + 8 * ATT_SINKS)
    rest = read_i64(record + 8 * REC_REST)
    high = rows_of.UNSEEN
    sums = np.float32(0.0)
    if sinks != 0:  # the score of a value of zeros
        high = read_f32(sinks + 4 * head) * rows_of.LOG2_E
        sums = np.float32(1.0)
    count = read_f32(rest) if rest != 0 else np.float32(0.0)
    if count == np.float32(0.0):
        if total != 0:
            fill(total, np.float32(0.0), padded)
    else:
        size = read_i64(instr + 8 * ATT_HEAD_DIM)
        row = (read_i64(part + 8 * PART_FIRST) + token) * read_i64(instr + 8 * ATT_HEADS) + head
        score = _rest_score(instr, read_i64(instr + 8 * ATT_Q) + 4 * size * row, rest, size)
        new = max(high, score)
        take = rows_of.power(score - new) * count
        sums = sums * rows_of.power(high - new) + take
        high = new
        if total != 0:
            value = rest + 4 * (REST_KEY + padded)
            for i in range(0, padded, LANES):
                store_f32(total + 4 * i, mul(load_f32(value + 4 * i), splat_f32(take)))
    write_f32(total_max, high)
    write_f32(total_sum, sums)


@inline
def _rest_score(instr: int, q: int, rest: int, size: int) -> Any:
    """A query's score of the rest, in units of log 2."""
    products = zero_f32()
    for i in range(0, size, LANES):
        x = load_f32_first(q + 4 * i, min(LANES, size - i))
        products = fma(x, load_f32(rest + 4 * (REST_KEY + i)), products)
    score = sum_lanes(products) * f32_from_bits(read_i64(instr + 8 * ATT_SCALE))
    cap = f32_from_bits(read_i64(instr + 8 * ATT_CAP))
    if cap != np.float32(0.0):
        score = max_lanes(vmath.tanh(splat_f32(score / cap))) * cap
    return score * rows_of.LOG2_E


@outline
def merge(
    total: int, total_max: int, total_sum: int, acc: int, high: float, s: float, size: int
) -> None:
    """Add a chunk's result, its maximum `high` and its sum `s` to the total."""
    old = read_f32(total_max)
    new = max(old, high)
    keep = rows_of.power(old - new)
    take = rows_of.power(high - new)
    write_f32(total_max, new)
    write_f32(total_sum, read_f32(total_sum) * keep + s * take)
    for i in range(0, size, LANES):
        v = mul(load_f32(acc + 4 * i), splat_f32(take))
        store_f32(total + 4 * i, fma(load_f32(total + 4 * i), splat_f32(keep), v))


@inline
def write_row(total: int, total_sum: float, out: int, size: int) -> None:
    """out = total / sum; 0 where nothing was seen.

    Chunks that a row does not see add 0 to its total, which makes 0 of -0: so does this.
    """
    inverse = np.float32(1.0) / total_sum if total_sum > np.float32(0.0) else np.float32(0.0)
    for i in range(0, size, LANES):
        v = fma(load_f32(total + 4 * i), splat_f32(inverse), zero_f32())
        store_f32_first(out + 4 * i, v, min(LANES, size - i))
