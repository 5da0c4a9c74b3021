"""The second half of attention for one token: merges what the threads left as partial results.

Arithmetic as in `attention.py`, slots and arguments in `launch_attention.py`.
"""

from __future__ import annotations

import numpy as np

from edgetok.kernels_cpu import attention_rows as rows_of
from edgetok.kernels_cpu.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.attention import (
    TOTAL_MAX,
    TOTAL_SUM,
    merge,
    record_at,
    total_at,
    write_row,
)
from edgetok.kernels_cpu.launch_attention import (
    ATT_HEAD_DIM,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_OUT,
    ATT_PARTIALS,
    ATT_SCRATCH,
    ATT_SCRATCH_BYTES,
    DIM_TILE,
    MAX_CHUNKS,
    PARTIAL_EXTRA,
    REC_CHUNK,
    REC_USED,
)
from edgetok.kernels_cpu.simd import LANES, read_f32, read_i64, store_f32, write_f32, zero_f32


@kernel
def attention_merge(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Merge one token's partial results, a share of the heads for each thread."""
    if read_i64(ctx + 8 * CTX_TOKENS) != 1:
        return
    heads = read_i64(instr + 8 * ATT_HEADS)
    group = heads // read_i64(instr + 8 * ATT_KV_HEADS)
    size = read_i64(instr + 8 * ATT_HEAD_DIM)
    padded = (size + DIM_TILE - 1) // DIM_TILE * DIM_TILE
    out = read_i64(instr + 8 * ATT_OUT)
    partials = read_i64(instr + 8 * ATT_PARTIALS)
    scratch = read_i64(instr + 8 * ATT_SCRATCH) + tid * read_i64(instr + 8 * ATT_SCRATCH_BYTES)
    total = total_at(scratch, padded)
    for head in range(heads * tid // threads, heads * (tid + 1) // threads):
        record = record_at(instr, ctx, head // group)
        used = read_i64(record + 8 * REC_USED)
        slots = read_i64(record + 8 * REC_CHUNK)
        for i in range(0, padded, LANES):
            store_f32(total + 4 * i, zero_f32())
        write_f32(scratch + TOTAL_MAX, rows_of.UNSEEN)
        write_f32(scratch + TOTAL_SUM, np.float32(0.0))
        for c in range((used + slots - 1) // slots):
            acc = partials + 4 * (padded + PARTIAL_EXTRA) * (head * MAX_CHUNKS + c)
            high = read_f32(acc + 4 * padded)
            s = read_f32(acc + 4 * padded + 4)
            merge(total, scratch + TOTAL_MAX, scratch + TOTAL_SUM, acc, high, s, padded)
        write_row(total, read_f32(scratch + TOTAL_SUM), out + 4 * size * head, size)
