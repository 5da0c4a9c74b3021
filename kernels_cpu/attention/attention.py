"""Attention over the slots of the KV cache: softmax(softcap(scale * q k^T)) v, causal or windowed.

The query rows (token and head) of one KV head are computed together, up to ROWS of them, so that
keys and values are read once for all heads that share them. Slots are taken in chunks; a chunk's
softmax is computed online (arXiv 1805.02867), tile by tile, and chunks are merged in order
(arXiv 2205.14135). With one token, chunks are shared out over the threads and `attention_merge`
merges them; with more, rows are. Both do the same arithmetic for a row, so its bits depend neither
on the number of threads nor on the tokens beside it. There is no T x T matrix.

Layout, slots and arguments: `attention/launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention import mass
from edgetok.kernels_cpu.attention import rows as rows_of
from edgetok.kernels_cpu.attention import scratch as state
from edgetok.kernels_cpu.attention.launch import (
    ATT_CAP,
    ATT_DIM_TILE,
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_OUT,
    ATT_PARTIALS,
    ATT_POSITIONS,
    ATT_Q,
    ATT_SCALE,
    ATT_SCRATCH,
    ATT_SCRATCH_BYTES,
    ATT_WINDOW,
    BLOCK,
    CTX_MASS,
    EMPTY,
    MASS_LANES,
    MAX_CHUNKS,
    PARTIAL_EXTRA,
    REC_KEY_SCALES,
    REC_KEYS,
    REC_POSITIONS,
    REC_USED,
    REC_VALUE_SCALES,
    REC_VALUES,
    ROWS,
    SLOT_TILE,
)
from edgetok.kernels_cpu.attention.steps import is_integer
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import CTX_TOKENS
from edgetok.kernels_cpu.simd.emit import LANES, outline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_i32,
    read_f32,
    read_i32,
    read_i64,
    store_f32,
    write_f32,
    write_i32,
    write_i64,
)
from edgetok.kernels_cpu.simd.ops import any_between


def make(kv_bits: int) -> Any:
    """Attention over one kind of cache."""
    of = rows_of.make(kv_bits)
    query, scores, weigh, values = of.query, of.scores, of.weigh, of.values
    norm_scales = of.norm_scales
    integer = is_integer(kv_bits)

    @outline
    def begin_rows(
        instr: int, ctx: int, scratch: int, head: int, first: int, last: int, padded: int, keep: int
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
        q = read_i64(instr + 8 * ATT_Q)
        positions = read_i64(instr + 8 * ATT_POSITIONS)
        count = (last - first + 3) // 4 * 4
        counted = mass.first_counted(ctx)
        for r in range(count):
            to = scratch + state.QUERY + 4 * padded * r
            write_i64(scratch + state.KEPT + 8 * r, 0)
            if first + r < last:
                token = (first + r) // group
                if keep >= 0 and token >= counted:
                    write_i64(scratch + state.KEPT + 8 * r, mass.row_at(ctx, keep + r))
                x = q + 4 * size * (token * heads + head * group + (first + r) % group)
                offset = scratch + state.OFFSET + 4 * r
                query(x, to, offset, scratch + state.FACTOR + 4 * r, size, padded, scale)
                position = read_i32(positions + 4 * token)
                low = np.int64(position) - window + 1 if window > 0 else np.int64(0)
                write_i32(scratch + state.LOW + 4 * r, np.int32(max(low, np.int64(0))))
                write_i32(scratch + state.HIGH + 4 * r, position)
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
        ctx: int,
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
            visible(instr, ctx, scratch, record, begin, first, last, rows, padded, hidden != 0)
        else:
            for r in range(rows):
                kept = read_i64(scratch + state.KEPT + 8 * r)
                if kept != 0:
                    mass.note(ctx, kept, begin, rows_of.UNSEEN)

    @outline
    def visible(
        instr: int,
        ctx: int,
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
        at_keys = read_i64(record + 8 * REC_KEYS) + kv_bits * padded * first // 8
        at_values = read_i64(record + 8 * REC_VALUES) + kv_bits * padded * first // 8
        scores(
            at_keys,
            read_i64(record + 8 * REC_KEY_SCALES) + 4 * first,
            scratch + state.QUERY,
            scratch + state.OFFSET,
            scratch + state.FACTOR,
            s_at,
            at_values,
            rows,
            count,
            padded,
        )
        scales = read_i64(record + 8 * REC_VALUE_SCALES) + 4 * first
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
                mass.note(ctx, kept, begin, here)
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
            if kv_bits == 4:
                write_f32(base, read_f32(base) * take)
            at = scratch + state.SUM + 4 * r
            write_f32(at, read_f32(at) * keep + total * take)
        values(
            at_values,
            codes_at if integer else s_at,
            scratch + state.KEEP,
            scratch + state.WEIGHT_FACTOR,
            scratch + state.WEIGHT_BASE,
            state.result_at(scratch, padded),
            at_keys + kv_bits * padded * count // 8,
            rows,
            count,
            padded,
        )

    @outline
    def chunk(
        instr: int,
        ctx: int,
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
            block(instr, ctx, scratch, record, b, min(b + BLOCK, end), rows, padded)

    @outline
    def one_token(instr: int, ctx: int, tid: int, threads: int, scratch: int, padded: int) -> None:
        """Tasks are (KV head, rows, chunk); results go to the partials."""
        kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
        group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
        partials = read_i64(instr + 8 * ATT_PARTIALS)
        acc = state.result_at(scratch, padded)
        every = 0
        for head in range(kv_heads):
            record = state.record_at(instr, ctx, head)
            used = read_i64(record + 8 * REC_USED)
            every += (group + ROWS - 1) // ROWS * ((used + BLOCK - 1) // BLOCK)
        begin = share(every, tid, threads)
        end = share(every, tid + 1, threads)
        number = 0  # of the block that the next chunk begins with
        for head in range(kv_heads):
            record = state.record_at(instr, ctx, head)
            used = read_i64(record + 8 * REC_USED)
            for first in range(0, group, ROWS):
                last = min(first + ROWS, group)
                rows = 0
                c, to_slot, size = -1, 0, BLOCK
                while to_slot < used:
                    size = state.chunk_at(to_slot, size)
                    slot = to_slot
                    to_slot = min(slot + size, used)
                    block = number
                    number += (to_slot - slot + BLOCK - 1) // BLOCK
                    c += 1
                    if block < begin or block >= end:
                        continue
                    if rows == 0:
                        kept = head * group + first if mass.is_wanted(ctx, record) else np.int64(-1)
                        rows = begin_rows(instr, ctx, scratch, head, first, last, padded, kept)
                    chunk(instr, ctx, scratch, record, slot, to_slot, rows, padded)
                    for r in range(last - first):
                        index = (head * group + first + r) * MAX_CHUNKS + c
                        to = partials + 4 * (padded + PARTIAL_EXTRA) * index
                        for i in range(0, padded, LANES):
                            store_f32(to + 4 * i, load_f32(acc + 4 * (padded * r + i)))
                        write_f32(to + 4 * padded, read_f32(scratch + state.MAX + 4 * r))
                        write_f32(to + 4 * padded + 4, read_f32(scratch + state.SUM + 4 * r))

    @outline
    def many_tokens(
        instr: int, ctx: int, tid: int, threads: int, scratch: int, padded: int, tokens: int
    ) -> None:
        """Units are (KV head, lane); a lane takes every MASS_LANES-th task of rows."""
        kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
        group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
        every = tokens * group
        at_once = np.int64(ROWS)
        # Mass is summed task by task, so there the tasks are the same for every number of threads.
        wanted = threads if read_i64(ctx + 8 * CTX_MASS) == 0 else np.int64(MASS_LANES)
        while at_once > 4 and kv_heads * ((every + at_once - 1) // at_once) < wanted:
            at_once //= 2
        units = kv_heads * MASS_LANES
        for unit in range(share(units, tid, threads), share(units, tid + 1, threads)):
            head = unit // MASS_LANES
            lane = unit % MASS_LANES
            record = state.record_at(instr, ctx, head)
            used = mass.rounded(read_i64(record + 8 * REC_USED))
            kept = np.int64(-1)
            if mass.is_wanted(ctx, record):
                kept = np.int64(tid * ROWS)
                mass.clear(mass.lane_at(instr, ctx, threads, head, lane), 0, used)
            for first in range(lane * at_once, every, MASS_LANES * at_once):
                last = min(first + at_once, every)
                rows = begin_rows(instr, ctx, scratch, head, first, last, padded, kept)
                task(instr, ctx, scratch, record, head, first, last, rows, padded)
                if kept >= 0:
                    to = mass.lane_at(instr, ctx, threads, head, lane)
                    for r in range(last - first):
                        row = read_i64(scratch + state.KEPT + 8 * r)
                        if row != 0:
                            high = read_f32(scratch + state.TOTAL_MAX + 4 * r)
                            total = read_f32(scratch + state.TOTAL_SUM + 4 * r)
                            mass.add_row(ctx, row, high, total, to, 0, used)

    @outline
    def task(
        instr: int,
        ctx: int,
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
        used = read_i64(record + 8 * REC_USED)
        total = state.total_at(scratch, padded)
        state.fill(total, np.float32(0.0), rows * padded)
        for r in range(rows):
            write_f32(scratch + state.TOTAL_MAX + 4 * r, rows_of.UNSEEN)
            write_f32(scratch + state.TOTAL_SUM + 4 * r, np.float32(0.0))
        slot, chunk_slots = 0, BLOCK
        while slot < used:
            chunk_slots = state.chunk_at(slot, chunk_slots)
            begin = slot
            slot = min(begin + chunk_slots, used)
            chunk(instr, ctx, scratch, record, begin, slot, rows, padded)
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
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        if tokens == 1:
            one_token(instr, ctx, tid, threads, scratch, padded)
        else:
            many_tokens(instr, ctx, tid, threads, scratch, padded, tokens)

    return attention
