"""Attention over the slots of the KV cache: softmax(softcap(scale * q k^T)) v, causal or windowed.

The query rows (token and head) of one KV head are computed together, up to ROWS of them, so that
keys and values are read once for all heads that share them. Slots are taken in chunks; a chunk's
softmax is computed online (arXiv 1805.02867), tile by tile, and chunks are merged in order
(arXiv 2205.14135). Of parts with one row, chunks are shared out over the threads, those of all
parts together, and `attention_merge` merges them; of parts with more, rows are. Both do the same
arithmetic for a row, so its bits depend neither on the number of threads nor on the rows and parts
beside it. There is no T x T matrix.

Layout, slots and arguments: `attention/launch.py`; parts: `program/abi.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import chunk as chunks
from edgetok.kernels_cpu.attention import mass
from edgetok.kernels_cpu.attention import scratch as state
from edgetok.kernels_cpu.attention.launch import (
    ATT_DIM_TILE,
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_OUT,
    ATT_SCRATCH,
    ATT_SCRATCH_BYTES,
    BLOCK,
    MASS_LANES,
    REC_USED,
    ROWS,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    PART_FIRST,
    PART_MASS,
    PART_ROWS,
    PART_SLOTS,
)
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import (
    load_f32,
    read_f32,
    read_i64,
    store_f32,
    write_f32,
)


def make(kv_bits: int) -> Any:
    """Attention over one kind of cache."""
    begin_rows, chunk = chunks.make(kv_bits)

    @outline
    def single_blocks(instr: int, part: int) -> Any:
        """Blocks of slots that all tasks of a part of one row read together; else 0."""
        if read_i64(part + 8 * PART_ROWS) != 1:
            return np.int64(0)
        kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
        group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
        blocks = np.int64(0)
        for head in range(kv_heads):
            used = read_i64(state.record_at(instr, part, head) + 8 * REC_USED)
            blocks += (group + ROWS - 1) // ROWS * ((used + BLOCK - 1) // BLOCK)
        return blocks

    @outline
    def one_row(
        instr: int, part: int, scratch: int, padded: int, number: int, begin: int, end: int
    ) -> None:
        """Tasks are (KV head, rows, chunk); results go to the partials.

        Blocks are numbered through, over tasks and parts, from `number` on; those tasks are done
        whose first block is one of begin..end.
        """
        kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
        group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
        acc = state.result_at(scratch, padded)
        for head in range(kv_heads):
            record = state.record_at(instr, part, head)
            used = read_i64(record + 8 * REC_USED)
            for first in range(0, group, ROWS):
                last = min(first + ROWS, group)
                rows = 0
                c, slot, size = 0, 0, BLOCK
                while slot < used:
                    size = state.chunk_at(slot, size)
                    after = min(slot + size, used)
                    if begin <= number and number < end:
                        if rows == 0:
                            kept = np.int64(-1)
                            if mass.is_wanted(part, record):
                                kept = head * group + first
                            rows = begin_rows(instr, part, scratch, head, first, last, padded, kept)
                        chunk(instr, part, scratch, record, slot, after, rows, padded)
                        for r in range(last - first):
                            to = state.partial_at(part, head * group + first + r, c, padded)
                            for i in range(0, padded, LANES):
                                store_f32(to + 4 * i, load_f32(acc + 4 * (padded * r + i)))
                            write_f32(to + 4 * padded, read_f32(scratch + state.MAX + 4 * r))
                            write_f32(to + 4 * padded + 4, read_f32(scratch + state.SUM + 4 * r))
                    number += (after - slot + BLOCK - 1) // BLOCK
                    slot = after
                    c += 1

    @outline
    def many_rows(
        instr: int, part: int, tid: int, threads: int, scratch: int, padded: int, tokens: int
    ) -> None:
        """Units are (KV head, lane); a lane takes every MASS_LANES-th task of rows."""
        kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
        group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
        every = tokens * group
        at_once = np.int64(ROWS)
        # Mass is summed task by task, so there the tasks are the same for every number of threads.
        wanted = threads if read_i64(part + 8 * PART_MASS) == 0 else np.int64(MASS_LANES)
        while at_once > 4 and kv_heads * ((every + at_once - 1) // at_once) < wanted:
            at_once //= 2
        units = kv_heads * MASS_LANES
        for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
            head = unit // MASS_LANES
            lane = unit % MASS_LANES
            record = state.record_at(instr, part, head)
            used = mass.rounded(read_i64(record + 8 * REC_USED))
            kept = np.int64(-1)
            if mass.is_wanted(part, record):
                kept = np.int64(tid * ROWS)
                mass.clear(mass.lane_at(instr, part, threads, head, lane), 0, used)
            for first in range(lane * at_once, every, MASS_LANES * at_once):
                last = min(first + at_once, every)
                rows = begin_rows(instr, part, scratch, head, first, last, padded, kept)
                task(instr, part, scratch, record, head, first, last, rows, padded)
                if kept >= 0:
                    to = mass.lane_at(instr, part, threads, head, lane)
                    for r in range(last - first):
                        row = read_i64(scratch + state.KEPT + 8 * r)
                        if row != 0:
                            high = read_f32(scratch + state.TOTAL_MAX + 4 * r)
                            total = read_f32(scratch + state.TOTAL_SUM + 4 * r)
                            mass.add_row(part, row, high, total, to, 0, used)

    @outline
    def task(
        instr: int,
        part: int,
        scratch: int,
        record: int,
        head: int,
        first: int,
        last: int,
        rows: int,
        padded: int,
    ) -> None:
        """Rows first..last of a KV head over all its chunks."""
        heads = read_i64(instr + 8 * ATT_HEADS)
        group = heads // read_i64(instr + 8 * ATT_KV_HEADS)
        size = read_i64(instr + 8 * ATT_HEAD_DIM)
        out = read_i64(instr + 8 * ATT_OUT)
        out += 4 * size * heads * read_i64(part + 8 * PART_FIRST)
        used = read_i64(record + 8 * REC_USED)
        total = state.total_at(scratch, padded)
        for r in range(rows):
            row = min(first + r, last - 1)  # what is beyond is written nowhere
            state.begin_total(
                instr,
                part,
                record,
                head * group + row % group,
                row // group,
                total + 4 * padded * r,
                scratch + state.TOTAL_MAX + 4 * r,
                scratch + state.TOTAL_SUM + 4 * r,
                padded,
            )
        slot, chunk_slots = 0, BLOCK
        while slot < used:
            chunk_slots = state.chunk_at(slot, chunk_slots)
            begin = slot
            slot = min(begin + chunk_slots, used)
            chunk(instr, part, scratch, record, begin, slot, rows, padded)
            for r in range(rows):
                state.merge(
                    total + 4 * padded * r,
                    scratch + state.TOTAL_MAX + 4 * r,
                    scratch + state.TOTAL_SUM + 4 * r,
                    state.result_at(scratch, padded) + 4 * padded * r,
                    read_f32(scratch + state.MAX + 4 * r),
                    read_f32(scratch + state.SUM + 4 * r),
                    padded,
                )
        for r in range(last - first):
            token = (first + r) // group
            row = token * heads + head * group + (first + r) % group
            total_sum = read_f32(scratch + state.TOTAL_SUM + 4 * r)
            state.write_row(total + 4 * padded * r, total_sum, out + 4 * size * row, size)

    @outline
    def attention(instr: int, ctx: int, tid: int, threads: int) -> None:
        size = read_i64(instr + 8 * ATT_HEAD_DIM)
        tile = read_i64(instr + 8 * ATT_DIM_TILE)
        padded = (size + tile - 1) // tile * tile
        scratch = read_i64(instr + 8 * ATT_SCRATCH)
        scratch += tid * read_i64(instr + 8 * ATT_SCRATCH_BYTES)
        parts = read_i64(ctx + 8 * CTX_PARTS)
        table = read_i64(ctx + 8 * CTX_PART_TABLE)
        every = np.int64(0)
        for i in range(parts):
            every += single_blocks(instr, table + 8 * PART_SLOTS * i)
        begin, end = share(every, tid, threads), share(every, tid + 1, threads)
        number = np.int64(0)
        for i in range(parts):
            part = table + 8 * PART_SLOTS * i
            rows = read_i64(part + 8 * PART_ROWS)
            if rows == 1:
                blocks = single_blocks(instr, part)
                if number < end and begin < number + blocks:
                    one_row(instr, part, scratch, padded, number, begin, end)
                number += blocks
            elif rows > 1:
                many_rows(instr, part, tid, threads, scratch, padded, rows)

    return attention
