"""Attention over the slots of the KV cache: softmax(softcap(scale * q k^T)) v, causal or windowed.

The query rows (token and head) of one KV head are computed together, up to ROWS of them, so that
keys and values are read once for all heads that share them. Slots are taken in chunks; a chunk's
softmax is computed online (arXiv 1805.02867), tile by tile, and chunks are merged in order
(arXiv 2205.14135). With one token, chunks are shared out over the threads and `attention_merge`
merges them; with more, rows are. Both do the same arithmetic for a row, so its bits depend neither
on the number of threads nor on the tokens beside it. There is no T x T matrix.

Layout, slots and arguments: `launch_attention.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu import attention_mass as mass
from edgetok.kernels_cpu import attention_rows as rows_of
from edgetok.kernels_cpu.abi import CTX_TOKENS
from edgetok.kernels_cpu.launch_attention import (
    ATT_CAP,
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_OUT,
    ATT_PARTIALS,
    ATT_POSITIONS,
    ATT_Q,
    ATT_RECORD,
    ATT_SCALE,
    ATT_SCRATCH,
    ATT_SCRATCH_BYTES,
    ATT_WINDOW,
    BLOCK,
    CTX_CACHE,
    CTX_MASS,
    DIM_TILE,
    EMPTY,
    MASS_LANES,
    MAX_CHUNKS,
    PARTIAL_EXTRA,
    REC_CHUNK,
    REC_KEY_SCALES,
    REC_KEYS,
    REC_POSITIONS,
    REC_USED,
    REC_VALUE_SCALES,
    REC_VALUES,
    RECORD_SLOTS,
    ROWS,
    SLOT_TILE,
)
from edgetok.kernels_cpu.norm import share
from edgetok.kernels_cpu.simd import (
    LANES,
    any_between,
    f32_from_bits,
    fma,
    inline,
    load_f32,
    load_i32,
    mul,
    outline,
    read_f32,
    read_i32,
    read_i64,
    splat_f32,
    store_f32,
    store_f32_first,
    write_f32,
    write_i32,
    write_i64,
)

# A thread's scratch: [ROWS] of each small array, then queries, scores, a chunk's result, the total.
_OFFSET = 0  # int32: see `query_int8`
_FACTOR = 4 * ROWS  # float32: scale of the query times the attention scale
_LOW = 8 * ROWS  # int32: first position that the row sees
_HIGH = 12 * ROWS  # int32: last one
_MAX = 16 * ROWS  # float32: largest score of the chunk so far
_SUM = 20 * ROWS  # float32: sum of exponentials of the chunk so far
TOTAL_MAX = 24 * ROWS
TOTAL_SUM = 28 * ROWS
_WEIGHTS = 32 * ROWS  # int64: where the row's weights are kept for attention mass, or 0
_QUERY = 40 * ROWS  # [ROWS, padded] float32, or int8 in the first quarter of each row


@inline
def scores_at(scratch: int, padded: int) -> int:
    """Address of float32 [ROWS, BLOCK], scores and then weights."""
    return scratch + _QUERY + 4 * ROWS * padded


@inline
def chunk_at(scratch: int, padded: int) -> Any:
    """Address of float32 [ROWS, padded], the result of a chunk."""
    return scores_at(scratch, padded) + 4 * ROWS * BLOCK


@inline
def total_at(scratch: int, padded: int) -> Any:
    """Address of float32 [ROWS, padded], the merged result."""
    return chunk_at(scratch, padded) + 4 * ROWS * padded


@inline
def _fill(address: int, value: float, count: int) -> None:
    for i in range(0, count, LANES):
        store_f32(address + 4 * i, splat_f32(value))


@outline
def merge(
    total: int, total_max: int, total_sum: int, acc: int, high: float, s: float, size: int
) -> None:
    """Add a chunk's result, its maximum `high` and its sum `s` to the total."""
    old = read_f32(total_max)
    new = max(old, high)
    keep = rows_of.exp1(old - new)
    take = rows_of.exp1(high - new)
    write_f32(total_max, new)
    write_f32(total_sum, read_f32(total_sum) * keep + s * take)
    for i in range(0, size, LANES):
        v = mul(load_f32(acc + 4 * i), splat_f32(take))
        store_f32(total + 4 * i, fma(load_f32(total + 4 * i), splat_f32(keep), v))


@inline
def write_row(total: int, total_sum: float, out: int, size: int) -> None:
    """out = total / sum; 0 where nothing was seen."""
    inverse = np.float32(1.0) / total_sum if total_sum > np.float32(0.0) else np.float32(0.0)
    for i in range(0, size, LANES):
        v = mul(load_f32(total + 4 * i), splat_f32(inverse))
        store_f32_first(out + 4 * i, v, min(LANES, size - i))


def make(kv_bits: int, query: Any, scores: Any, values: Any) -> Any:
    """Attention over one kind of cache, from its steps in `attention_rows.py`."""
    nbytes = kv_bits // 8
    scaled = kv_bits == 8

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
        q = read_i64(instr + 8 * ATT_Q)
        positions = read_i64(instr + 8 * ATT_POSITIONS)
        count = (last - first + 3) // 4 * 4
        counted = mass.first_counted(ctx)
        for r in range(count):
            to = scratch + _QUERY + 4 * padded * r
            write_i64(scratch + _WEIGHTS + 8 * r, 0)
            if first + r < last:
                token = (first + r) // group
                if keep >= 0 and token >= counted:
                    write_i64(scratch + _WEIGHTS + 8 * r, mass.row_at(ctx, keep + r))
                x = q + 4 * size * (token * heads + head * group + (first + r) % group)
                offset = scratch + _OFFSET + 4 * r
                query(x, to, offset, scratch + _FACTOR + 4 * r, size, padded, scale)
                position = read_i32(positions + 4 * token)
                low = np.int64(position) - window + 1 if window > 0 else np.int64(0)
                write_i32(scratch + _LOW + 4 * r, np.int32(max(low, np.int64(0))))
                write_i32(scratch + _HIGH + 4 * r, position)
            else:
                _fill(to, np.float32(0.0), padded)
                write_i32(scratch + _OFFSET + 4 * r, np.int32(0))
                write_f32(scratch + _FACTOR + 4 * r, np.float32(0.0))
                write_i32(scratch + _LOW + 4 * r, np.int32(1))
                write_i32(scratch + _HIGH + 4 * r, np.int32(0))
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
        for r in range(rows):
            low = read_i32(scratch + _LOW + 4 * r)
            high = read_i32(scratch + _HIGH + 4 * r)
            if low <= high:
                lowest = min(lowest, low)
                highest = max(highest, high)
        # Tiles at both ends that no row sees are left out.
        first, last = end, begin
        for tile in range(begin, end, SLOT_TILE):
            seen = np.int64(0)
            for i in range(0, SLOT_TILE, LANES):
                seen |= any_between(load_i32(where + 4 * (tile + i)), lowest, highest)
            if seen != 0:
                first = min(first, tile)
                last = min(tile + SLOT_TILE, end)
        if first < last:
            visible(instr, ctx, scratch, record, begin, first, last, rows, padded)
        else:
            for r in range(rows):
                kept = read_i64(scratch + _WEIGHTS + 8 * r)
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
    ) -> None:
        """Scores, softmax and values of slots first..last of the block that begins at `begin`."""
        cap = f32_from_bits(read_i64(instr + 8 * ATT_CAP))
        count = last - first
        rounded = (count + 2 * LANES - 1) // (2 * LANES) * (2 * LANES)
        where = read_i64(record + 8 * REC_POSITIONS) + 4 * first
        s_at = scores_at(scratch, padded)
        acc = chunk_at(scratch, padded)
        scores(
            read_i64(record + 8 * REC_KEYS) + nbytes * padded * first,
            read_i64(record + 8 * REC_KEY_SCALES) + 4 * first,
            scratch + _QUERY,
            scratch + _OFFSET,
            scratch + _FACTOR,
            s_at,
            rows,
            rounded,
            padded,
        )
        scales = read_i64(record + 8 * REC_VALUE_SCALES) + 4 * first if scaled else np.int64(0)
        for r in range(rows):
            row = s_at + 4 * BLOCK * r
            low = read_i32(scratch + _LOW + 4 * r)
            high = read_i32(scratch + _HIGH + 4 * r)
            old = read_f32(scratch + _MAX + 4 * r)
            new = rows_of.softmax_row(row, where, low, high, rounded, cap, old)
            kept = read_i64(scratch + _WEIGHTS + 8 * r)
            if kept != 0:
                mass.clear(kept, begin, begin + BLOCK)
                mass.note(ctx, kept, begin, new)
                kept += 4 * first
            total = rows_of.weigh_row(row, scales, kept, rounded, new)
            if new > old:
                keep = rows_of.exp1(old - new)
                rows_of.scale_row(acc + 4 * padded * r, keep, padded)
                total += read_f32(scratch + _SUM + 4 * r) * keep
                write_f32(scratch + _MAX + 4 * r, new)
            else:
                total += read_f32(scratch + _SUM + 4 * r)
            write_f32(scratch + _SUM + 4 * r, total)
        at = read_i64(record + 8 * REC_VALUES) + nbytes * padded * first
        values(at, s_at, acc, rows, count, padded)

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
        _fill(chunk_at(scratch, padded), np.float32(0.0), rows * padded)
        for r in range(rows):
            write_f32(scratch + _MAX + 4 * r, rows_of.UNSEEN)
            write_f32(scratch + _SUM + 4 * r, np.float32(0.0))
        for b in range(begin, end, BLOCK):
            block(instr, ctx, scratch, record, b, min(b + BLOCK, end), rows, padded)

    @outline
    def one_token(instr: int, ctx: int, tid: int, threads: int, scratch: int, padded: int) -> None:
        """Tasks are (KV head, rows, chunk); results go to the partials."""
        kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
        group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
        partials = read_i64(instr + 8 * ATT_PARTIALS)
        acc = chunk_at(scratch, padded)
        number = 0
        for head in range(kv_heads):
            record = record_at(instr, ctx, head)
            used = read_i64(record + 8 * REC_USED)
            slots = read_i64(record + 8 * REC_CHUNK)
            for first in range(0, group, ROWS):
                last = min(first + ROWS, group)
                rows = 0
                for c in range(0, used, slots):
                    number += 1
                    if (number - 1) % threads != tid:
                        continue
                    if rows == 0:
                        kept = head * group + first if mass.is_wanted(ctx, record) else np.int64(-1)
                        rows = begin_rows(instr, ctx, scratch, head, first, last, padded, kept)
                    chunk(instr, ctx, scratch, record, c, min(c + slots, used), rows, padded)
                    for r in range(last - first):
                        index = (head * group + first + r) * MAX_CHUNKS + c // slots
                        to = partials + 4 * (padded + PARTIAL_EXTRA) * index
                        for i in range(0, padded, LANES):
                            store_f32(to + 4 * i, load_f32(acc + 4 * (padded * r + i)))
                        write_f32(to + 4 * padded, read_f32(scratch + _MAX + 4 * r))
                        write_f32(to + 4 * padded + 4, read_f32(scratch + _SUM + 4 * r))

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
            record = record_at(instr, ctx, head)
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
                        row = read_i64(scratch + _WEIGHTS + 8 * r)
                        if row != 0:
                            high = read_f32(scratch + TOTAL_MAX + 4 * r)
                            total = read_f32(scratch + TOTAL_SUM + 4 * r)
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
        slots = read_i64(record + 8 * REC_CHUNK)
        total = total_at(scratch, padded)
        _fill(total, np.float32(0.0), rows * padded)
        for r in range(rows):
            write_f32(scratch + TOTAL_MAX + 4 * r, rows_of.UNSEEN)
            write_f32(scratch + TOTAL_SUM + 4 * r, np.float32(0.0))
        for c in range(0, used, slots):
            chunk(instr, ctx, scratch, record, c, min(c + slots, used), rows, padded)
            for r in range(rows):
                merge(
                    total + 4 * padded * r,
                    scratch + TOTAL_MAX + 4 * r,
                    scratch + TOTAL_SUM + 4 * r,
                    chunk_at(scratch, padded) + 4 * padded * r,
                    read_f32(scratch + _MAX + 4 * r),
                    read_f32(scratch + _SUM + 4 * r),
                    padded,
                )
        for r in range(last - first):
            token = (first + r) // group
            row = token * heads + head * group + (first + r) % group
            total_sum = read_f32(scratch + TOTAL_SUM + 4 * r)
            write_row(total + 4 * padded * r, total_sum, out + 4 * size * row, size)

    @outline
    def attention(instr: int, ctx: int, tid: int, threads: int) -> None:
        size = read_i64(instr + 8 * ATT_HEAD_DIM)
        padded = (size + DIM_TILE - 1) // DIM_TILE * DIM_TILE
        scratch = read_i64(instr + 8 * ATT_SCRATCH)
        scratch += tid * read_i64(instr + 8 * ATT_SCRATCH_BYTES)
        tokens = read_i64(ctx + 8 * CTX_TOKENS)
        if tokens == 1:
            one_token(instr, ctx, tid, threads, scratch, padded)
        else:
            many_tokens(instr, ctx, tid, threads, scratch, padded, tokens)

    return attention


@inline
def record_at(instr: int, ctx: int, head: int) -> Any:
    """Address of a KV head's record."""
    first = read_i64(ctx + 8 * CTX_CACHE) + read_i64(instr + 8 * ATT_RECORD)
    return first + 8 * RECORD_SLOTS * head
