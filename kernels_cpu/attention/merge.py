"""The second half of attention: what is known only when every thread has done its part.

Of parts with one row, merges the threads' partial results. With attention mass, adds it up.
Arithmetic as in `attention.py` and `attention/mass.py`, slots and arguments in
`attention/launch.py`.
"""

from __future__ import annotations

from edgetok.kernels_cpu.attention import mass
from edgetok.kernels_cpu.attention import rows as rows_of
from edgetok.kernels_cpu.attention.launch import (
    ATT_DIM_TILE,
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_OUT,
    ATT_SCRATCH,
    ATT_SCRATCH_BYTES,
    BLOCK,
    REC_USED,
)
from edgetok.kernels_cpu.attention.scratch import (
    TOTAL_MAX,
    TOTAL_SUM,
    begin_total,
    chunk_count,
    merge,
    partial_at,
    record_at,
    scores_at,
    total_at,
    write_row,
)
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    PART_FIRST,
    PART_MASS,
    PART_ROWS,
    PART_SLOTS,
    kernel,
)
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_f32, read_i64, write_f32


@kernel
def attention_merge(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Merge single rows' partial results, a share of the heads for each thread; then the mass."""
    scratch = read_i64(instr + 8 * ATT_SCRATCH) + tid * read_i64(instr + 8 * ATT_SCRATCH_BYTES)
    size = read_i64(instr + 8 * ATT_HEAD_DIM)
    tile = read_i64(instr + 8 * ATT_DIM_TILE)
    padded = (size + tile - 1) // tile * tile
    heads = read_i64(instr + 8 * ATT_HEADS)
    parts = read_i64(ctx + 8 * CTX_PARTS)
    table = read_i64(ctx + 8 * CTX_PART_TABLE)
    every = 0
    for i in range(parts):
        if read_i64(table + 8 * (PART_SLOTS * i + PART_ROWS)) == 1:
            every += heads
    begin, end = share(every, tid, threads), share(every, tid + 1, threads)
    before = 0
    for i in range(parts):
        part = table + 8 * PART_SLOTS * i
        rows = read_i64(part + 8 * PART_ROWS)
        if rows == 1:
            first, last = max(begin - before, 0), min(end - before, heads)
            _merge_heads(instr, part, first, last, scratch, padded)
            before += heads
        if rows > 0 and read_i64(part + 8 * PART_MASS) != 0:
            _mass(instr, part, tid, threads, scratch, padded)


@outline
def _merge_heads(instr: int, part: int, first: int, last: int, scratch: int, padded: int) -> None:
    """Merge query heads first..last of a part of one row."""
    heads = read_i64(instr + 8 * ATT_HEADS)
    group = heads // read_i64(instr + 8 * ATT_KV_HEADS)
    size = read_i64(instr + 8 * ATT_HEAD_DIM)
    out = read_i64(instr + 8 * ATT_OUT) + 4 * size * heads * read_i64(part + 8 * PART_FIRST)
    total = total_at(scratch, padded)
    for head in range(first, last):
        record = record_at(instr, part, head // group)
        chunks = chunk_count(read_i64(record + 8 * REC_USED))
        begin_total(
            instr,
            part,
            record,
            head,
            0,
            total,
            scratch + TOTAL_MAX,
            scratch + TOTAL_SUM,
            padded,
        )
        for c in range(chunks):
            acc = partial_at(part, head, c, padded)
            high = read_f32(acc + 4 * padded)
            s = read_f32(acc + 4 * padded + 4)
            merge(total, scratch + TOTAL_MAX, scratch + TOTAL_SUM, acc, high, s, padded)
        write_row(total, read_f32(scratch + TOTAL_SUM), out + 4 * size * head, size)


@outline
def _mass(instr: int, part: int, tid: int, threads: int, scratch: int, padded: int) -> None:
    """A share of all KV heads' blocks of slots for each thread."""
    kv_heads = read_i64(instr + 8 * ATT_KV_HEADS)
    group = read_i64(instr + 8 * ATT_HEADS) // kv_heads
    every = 0
    for head in range(kv_heads):
        every += (read_i64(record_at(instr, part, head) + 8 * REC_USED) + BLOCK - 1) // BLOCK
    first = share(every, tid, threads)
    last = share(every, tid + 1, threads)
    totals = scores_at(scratch, padded)
    before = 0
    for head in range(kv_heads):
        record = record_at(instr, part, head)
        used = read_i64(record + 8 * REC_USED)
        blocks = (used + BLOCK - 1) // BLOCK
        begin = max(first - before, 0)
        end = min(last - before, blocks)
        before += blocks
        if begin >= end or not mass.is_wanted(part, record):
            continue
        if read_i64(part + 8 * PART_ROWS) == 1:
            for r in range(group):
                _total(instr, part, record, head * group + r, totals + 8 * r, padded)
        slots = min(BLOCK * end, mass.rounded(used))
        mass.finish(instr, part, record, head, BLOCK * begin, slots, totals, threads)


@outline
def _total(instr: int, part: int, record: int, head: int, to: int, padded: int) -> None:
    """A query head's maximum and sum over all chunks."""
    begin_total(instr, part, record, head, 0, 0, to, to + 4, padded)
    high = read_f32(to)
    total = read_f32(to + 4)
    for c in range(chunk_count(read_i64(record + 8 * REC_USED))):
        at = partial_at(part, head, c, padded) + 4 * padded
        new = max(high, read_f32(at))
        keep = rows_of.power(high - new)
        total = total * keep + read_f32(at + 4) * rows_of.power(read_f32(at) - new)
        high = new
    write_f32(to, high)
    write_f32(to + 4, total)
