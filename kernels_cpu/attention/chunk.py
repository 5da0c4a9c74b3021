"""Attention of up to ROWS query rows over one chunk of slots, block by block.

A block has one softmax; blocks are added online (arXiv 1805.02867). Everything is left in the
thread's scratch (`attention/scratch.py`). Slots and arguments: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import mass
from edgetok.kernels_cpu.attention import rows as rows_of
from edgetok.kernels_cpu.attention import scratch as state
from edgetok.kernels_cpu.attention.launch import (
    ATT_CAP,
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_POSITIONS,
    ATT_Q,
    ATT_SCALE,
    ATT_WINDOW,
    BLOCK,
    EMPTY,
    PAGE_FIELDS,
    PAGE_KEY_SCALES,
    PAGE_KEYS,
    PAGE_SLOTS,
    PAGE_VALUE_SCALES,
    PAGE_VALUES,
    REC_POSITIONS,
    SLOT_TILE,
    key_bits,
    value_bits,
)
from edgetok.kernels_cpu.attention.steps import is_integer
from edgetok.kernels_cpu.program.abi import PART_FIRST
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_i32,
    read_f32,
    read_i32,
    read_i64,
    write_f32,
    write_i32,
    write_i64,
)
from edgetok.kernels_cpu.simd.ops import any_between


def make(kv_bits: int) -> Any:
    """`begin_rows` and `chunk` for one kind of cache."""
    of = rows_of.make(kv_bits)
    query, scores, weigh, values = of.query, of.scores, of.weigh, of.values
    norm_scales = of.norm_scales
    of_keys, of_values = key_bits(kv_bits), value_bits(kv_bits)
    integer = is_integer(of_values)

    @outline
    def begin_rows(
        instr: int,
        part: int,
        scratch: int,
        head: int,
        first: int,
        last: int,
        padded: int,
        keep: int,
    ) -> int:
        """Prepare rows first..last of a KV head; returns how many, rounded up to 4.

        Their weights are kept for attention mass from row `keep` of the workspace on; -1: not.
        """
        heads = read_i64(instr + 8 * ATT_HEADS)
        group = heads // read_i64(instr + 8 * ATT_KV_HEADS)
        size = read_i64(instr + 8 * ATT_HEAD_DIM)
        window = read_i64(instr + 8 * ATT_WINDOW)
        scale = f32_from_bits(read_i64(instr + 8 * ATT_SCALE))
        if read_i64(instr + 8 * ATT_CAP) == 0:  # a cap comes before the change of units
            scale *= rows_of.LOG2_E
        before = read_i64(part + 8 * PART_FIRST)
        q = read_i64(instr + 8 * ATT_Q) + 4 * size * heads * before
        positions = read_i64(instr + 8 * ATT_POSITIONS) + 4 * before
        count = (last - first + 3) // 4 * 4
        counted = mass.first_counted(part)
        for r in range(count):
            to = scratch + state.QUERY + 4 * padded * r
            write_i64(scratch + state.KEPT + 8 * r, 0)
            if first + r < last:
                token = (first + r) // group
                if keep >= 0 and token >= counted:
                    write_i64(scratch + state.KEPT + 8 * r, mass.row_at(part, keep + r))
                x = q + 4 * size * (token * heads + head * group + (first + r) % group)
                offset = scratch + state.OFFSET + 4 * r
                query(x, to, offset, scratch + state.FACTOR + 4 * r, size, padded, scale)
                position = read_i32(positions + 4 * token)
                low, high = np.int64(0), np.int64(position)
                if window > 0:
                    low = high - window + 1
                elif window < 0:  # to both sides
                    low = high + window + 1
                    high = min(high - window, np.int64(EMPTY)) - 1
                write_i32(scratch + state.LOW + 4 * r, np.int32(max(low, np.int64(0))))
                write_i32(scratch + state.HIGH + 4 * r, np.int32(high))
            else:
                state.fill(to, np.float32(0.0), padded)
                write_i32(scratch + state.OFFSET + 4 * r, np.int32(0))
                write_f32(scratch + state.FACTOR + 4 * r, np.float32(0.0))
                write_i32(scratch + state.LOW + 4 * r, np.int32(1))
                write_i32(scratch + state.HIGH + 4 * r, np.int32(0))
        return count

    @outline
    def block(
        instr: int,
        part: int,
        scratch: int,
        record: int,
        begin: int,
        end: int,
        rows: int,
        padded: int,
    ) -> None:
        """Add slots begin..end, of one BLOCK, to the rows' result."""
        where = read_i64(record + 8 * REC_POSITIONS)
        lowest = np.int32(EMPTY)
        highest = np.int32(0)
        for_all_low = np.int32(0)  # what every row sees
        for_all_high = np.int32(EMPTY - 1)
        for r in range(rows):
            low = read_i32(scratch + state.LOW + 4 * r)
            high = read_i32(scratch + state.HIGH + 4 * r)
            if low <= high:
                lowest = min(lowest, low)
                highest = max(highest, high)
                for_all_low = max(for_all_low, low)
                for_all_high = min(for_all_high, high)
        # Tiles at both ends that no row sees are left out.
        first, last = end, begin
        hidden = np.int64(0)  # not 0: a row does not see one of the others
        for tile in range(begin, end, SLOT_TILE):
            seen = np.int64(0)
            beyond = np.int64(0)
            for i in range(0, SLOT_TILE, LANES):
                position = load_i32(where + 4 * (tile + i))
                seen |= any_between(position, lowest, highest)
                beyond |= any_between(position, np.int32(-EMPTY), for_all_low - np.int32(1))
                beyond |= any_between(position, for_all_high + np.int32(1), np.int32(EMPTY))
            if seen != 0:
                if first == end:
                    first = tile
                    hidden = np.int64(0)
                last = tile + SLOT_TILE
            hidden |= beyond
        if first < last:
            visible(instr, part, scratch, record, begin, first, last, rows, padded, hidden != 0)
        else:
            for r in range(rows):
                kept = read_i64(scratch + state.KEPT + 8 * r)
                if kept != 0:
                    mass.note(part, kept, begin, rows_of.UNSEEN)

    @outline
    def visible(
        instr: int,
        part: int,
        scratch: int,
        record: int,
        begin: int,
        first: int,
        last: int,
        rows: int,
        padded: int,
        masked: bool,
    ) -> None:
        """Scores, softmax and values of slots first..last of the block that begins at `begin`."""
        cap = f32_from_bits(read_i64(instr + 8 * ATT_CAP))
        count = last - first
        where = read_i64(record + 8 * REC_POSITIONS) + 4 * first
        s_at = state.scores_at(scratch, padded)
        codes_at = state.codes_at(scratch, padded)
        # Memory never rests: while keys are read values are asked for, and then the next keys.
        page = state.page_at(record, begin)
        at = first - begin
        at_keys = read_i64(page + 8 * PAGE_KEYS) + of_keys * padded * at // 8
        at_values = read_i64(page + 8 * PAGE_VALUES) + of_values * padded * at // 8
        scales = read_i64(page + 8 * PAGE_VALUE_SCALES) + 4 * at
        next_keys = at_keys + of_keys * padded * count // 8
        if last - begin == PAGE_SLOTS:
            next_keys = read_i64(page + 8 * (PAGE_FIELDS + PAGE_KEYS))
        scores(
            at_keys,
            read_i64(page + 8 * PAGE_KEY_SCALES) + 4 * at,
            scratch + state.QUERY,
            scratch + state.OFFSET,
            scratch + state.FACTOR,
            s_at,
            at_values,
            rows,
            count,
            padded,
        )
        normed = state.normed_at(scratch, padded)
        unit = np.float32(1.0)
        if not masked:
            unit = norm_scales(scales, normed, count, where, np.int32(0), np.int32(0), False)
        for r in range(rows):
            row = s_at + 4 * BLOCK * r
            low = read_i32(scratch + state.LOW + 4 * r)
            high = read_i32(scratch + state.HIGH + 4 * r)
            if masked:  # each row has its own largest scale: of what it sees, and no other
                unit = norm_scales(scales, normed, count, where, low, high, True)
            here = rows_of.highest_score(row, where, low, high, count, cap, masked)
            kept = read_i64(scratch + state.KEPT + 8 * r)
            if kept != 0:
                mass.clear(kept, begin, first)
                mass.clear(kept, last, begin + BLOCK)
                mass.note(part, kept, begin, here)
                kept += 4 * first
            base = scratch + state.WEIGHT_BASE + 4 * r
            total = weigh(row, scales, normed, kept, codes_at + 2 * BLOCK * r, base, count, here)
            old = read_f32(scratch + state.MAX + 4 * r)
            new = max(old, here)
            keep = rows_of.power(old - new)
            take = rows_of.power(here - new)
            write_f32(scratch + state.MAX + 4 * r, new)
            write_f32(scratch + state.KEEP + 4 * r, keep)
            write_f32(scratch + state.WEIGHT_FACTOR + 4 * r, unit * take)
            if of_values == 4:
                write_f32(base, read_f32(base) * take)
            total_at = scratch + state.SUM + 4 * r
            write_f32(total_at, read_f32(total_at) * keep + total * take)
        values(
            at_values,
            codes_at if integer else s_at,
            scratch + state.KEEP,
            scratch + state.WEIGHT_FACTOR,
            scratch + state.WEIGHT_BASE,
            state.result_at(scratch, padded),
            next_keys,
            rows,
            count,
            padded,
        )

    @outline
    def chunk(
        instr: int,
        part: int,
        scratch: int,
        record: int,
        begin: int,
        end: int,
        rows: int,
        padded: int,
    ) -> None:
        """The rows' result over slots begin..end, left in the scratch."""
        state.fill(state.result_at(scratch, padded), np.float32(0.0), rows * padded)
        for r in range(rows):
            write_f32(scratch + state.MAX + 4 * r, rows_of.UNSEEN)
            write_f32(scratch + state.SUM + 4 * r, np.float32(0.0))
        for b in range(begin, end, BLOCK):
            block(instr, part, scratch, record, b, min(b + BLOCK, end), rows, padded)

    return begin_rows, chunk
