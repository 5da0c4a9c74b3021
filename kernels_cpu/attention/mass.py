"""Attention mass: how much attention each slot of the cache was given.

The softmax of a row is known only at its end, so each block of slots leaves the row's weights,
2^(score - maximum of the block), in a workspace. When the row's maximum and sum are known they
become probabilities and are added up, in an order that does not depend on the threads.

Definition, record and workspace: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import rows as rows_of
from edgetok.kernels_cpu.attention.launch import (
    ATT_HEADS,
    ATT_KV_HEADS,
    BLOCK,
    DIM_TILE,
    MASS_LANES,
    REC_MASS,
    ROWS,
    SLOT_TILE,
)
from edgetok.kernels_cpu.program.abi import (
    PART_MASS,
    PART_MASS_FIRST,
    PART_MASS_KEEP,
    PART_MASS_SLOTS,
    PART_ROWS,
)
from edgetok.kernels_cpu.simd.emit import LANES, inline, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    read_f32,
    read_i64,
    store_f32,
    write_f32,
)
from edgetok.kernels_cpu.simd.ops import add, fma, mul, splat_f32, zero_f32


@inline
def is_wanted(part: int, record: int) -> Any:
    """Whether this run keeps the mass of a record's head, of the part's cache."""
    return (read_i64(part + 8 * PART_MASS) != 0) & (read_i64(record + 8 * REC_MASS) != 0)


@inline
def row_at(part: int, row: int) -> Any:
    """Address of a row of weights: float32 [slots], then the maximum of each block."""
    slots = read_i64(part + 8 * PART_MASS_SLOTS)
    # `mass_row_floats`
    floats = slots + (slots // BLOCK + DIM_TILE - 1) // DIM_TILE * DIM_TILE
    return read_i64(part + 8 * PART_MASS) + 4 * floats * row


@inline
def first_counted(part: int) -> Any:
    """The first row of the part whose queries count."""
    return read_i64(part + 8 * PART_MASS_FIRST)


@inline
def lane_at(instr: int, part: int, threads: int, head: int, lane: int) -> Any:
    """Address of a lane's sum, float32 [slots]."""
    rows = max(read_i64(instr + 8 * ATT_HEADS), threads * ROWS)
    slots = read_i64(part + 8 * PART_MASS_SLOTS)
    return row_at(part, rows) + 4 * slots * (head * MASS_LANES + lane)


@inline
def rounded(used: int) -> Any:
    """Slots that are looked at: whole tiles."""
    return (used + SLOT_TILE - 1) // SLOT_TILE * SLOT_TILE


@outline
def clear(row: int, begin: int, end: int) -> None:
    """Zeros from slot `begin` to slot `end` of a row, both multiples of LANES."""
    for i in range(begin, end, LANES):
        store_f32(row + 4 * i, zero_f32())


@inline
def note(part: int, row: int, begin: int, highest: float) -> None:
    """Keep the maximum of the block that begins at slot `begin`."""
    write_f32(row + 4 * (read_i64(part + 8 * PART_MASS_SLOTS) + begin // BLOCK), highest)


@outline
def add_row(part: int, row: int, high: float, total: float, out: int, begin: int, end: int) -> None:
    """out[s] += weight[s] 2^(maximum of its block - high) / total for slots begin..end.

    Args:
        part: the row's.
        row: address of the row.
        high: the row's maximum over all its slots.
        total: the sum of its exponentials.
        out: address of float32 [slots].
        begin: a multiple of BLOCK.
        end: a multiple of LANES.
    """
    if total <= np.float32(0.0):
        return
    maxima = row + 4 * read_i64(part + 8 * PART_MASS_SLOTS)
    for block in range(begin, end, BLOCK):
        high_here = read_f32(maxima + 4 * (block // BLOCK))
        factor = rows_of.power(high_here - high) / total
        if factor > np.float32(0.0):  # blocks that the row does not see were never written
            for i in range(block, min(block + BLOCK, end), LANES):
                to = out + 4 * i
                store_f32(to, fma(load_f32(row + 4 * i), splat_f32(factor), load_f32(to)))


@inline
def _keep(part: int, out: int, begin: int, end: int) -> None:
    keep = f32_from_bits(read_i64(part + 8 * PART_MASS_KEEP))
    for i in range(begin, end, LANES):
        store_f32(out + 4 * i, mul(load_f32(out + 4 * i), splat_f32(keep)))


@outline
def finish(
    instr: int,
    part: int,
    record: int,
    head: int,
    begin: int,
    end: int,
    totals: int,
    threads: int,
) -> None:
    """Add to slots begin..end of a head's mass what the lanes, or the one row, have left.

    Args:
        instr: the attention instruction.
        part: the head's.
        record: likewise.
        head: the KV head.
        begin: a multiple of BLOCK.
        end: a multiple of SLOT_TILE.
        totals: with one row: address of each of the head's rows' maximum and sum.
        threads: of the run.
    """
    out = read_i64(record + 8 * REC_MASS)
    _keep(part, out, begin, end)
    if read_i64(part + 8 * PART_ROWS) == 1:
        if first_counted(part) > 0:
            return
        group = read_i64(instr + 8 * ATT_HEADS) // read_i64(instr + 8 * ATT_KV_HEADS)
        for r in range(group):
            high = read_f32(totals + 8 * r)
            total = read_f32(totals + 8 * r + 4)
            add_row(part, row_at(part, head * group + r), high, total, out, begin, end)
    else:
        for lane in range(MASS_LANES):
            x = lane_at(instr, part, threads, head, lane)
            for i in range(begin, end, LANES):
                store_f32(out + 4 * i, add(load_f32(out + 4 * i), load_f32(x + 4 * i)))
