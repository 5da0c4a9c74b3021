"""Rests: of each head the mean key and value of what it evicted, and of how many.

    mean = (mean * n + sum of the slots') / (n + slots),    n = min(n + slots, REST_TOKENS)

so that a rest that stands for REST_TOKENS forgets: with more, what is long gone outweighs what was
said. Means are of keys and values as slots hold them; attention reads them so
(`attention/launch.py`). Slots: `launch.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import REST_KEY, REST_TOKENS, key_bits, value_bits
from edgetok.kernels_cpu.elementwise.norm import share
from edgetok.kernels_cpu.eviction.launch import (
    EV_HEADS,
    EV_PAGES,
    EV_RECORD_SLOTS,
    EV_RECORDS,
    EV_REST,
    EV_SCRATCH,
    EV_SCRATCH_BYTES,
    EV_SLOTS,
    REST_COUNTS,
    REST_DIMS,
    REST_EVICTED,
    REST_PADDED,
    REST_PAGE_SLOTS,
)
from edgetok.kernels_cpu.eviction.stored import key_at, page_at, value_at
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_f32, read_i64, read_int, write_f32

_MOST = np.float32(REST_TOKENS)


def make(kv_bits: int) -> Any:
    """The kernel for one kind of slot."""
    of_keys, of_values = key_bits(kv_bits), value_bits(kv_bits)

    @outline
    def add_slot(page: int, slot: int, dims: int, padded: int, sums: int) -> None:
        for d in range(dims):
            to = sums + 4 * d
            write_f32(to, read_f32(to) + key_at(of_keys, page, padded, slot, d))
            to += 4 * dims
            write_f32(to, read_f32(to) + value_at(of_values, page, padded, slot, d))

    @outline
    def move_mean(mean: int, dims: int, count: float, sums: int, total: float) -> None:
        for d in range(dims):
            at = mean + 4 * d
            write_f32(at, (read_f32(at) * count + read_f32(sums + 4 * d)) / total)

    @outline
    def join(instr: int, ctx: int, tid: int, threads: int) -> None:
        heads = read_i64(instr + 8 * EV_HEADS)
        slots = read_i64(instr + 8 * EV_SLOTS)
        page_slots = read_i64(instr + 8 * REST_PAGE_SLOTS)
        dims = read_i64(instr + 8 * REST_DIMS)
        padded = read_i64(instr + 8 * REST_PADDED)
        sums = read_i64(instr + 8 * EV_SCRATCH) + tid * read_i64(instr + 8 * EV_SCRATCH_BYTES)
        for head in range(share(heads, tid, threads), share(heads, tid + 1, threads)):
            record = read_i64(instr + 8 * EV_RECORDS) + 8 * EV_RECORD_SLOTS * head
            rest = read_i64(record + 8 * EV_REST)
            n = read_i64(read_i64(instr + 8 * REST_COUNTS) + 8 * head)
            if rest == 0 or n == 0:
                continue
            evicted = read_i64(instr + 8 * REST_EVICTED) + 4 * slots * head
            pages = read_i64(record + 8 * EV_PAGES)
            for d in range(2 * dims):
                write_f32(sums + 4 * d, np.float32(0.0))
            for i in range(n):
                s = read_int(evicted + 4 * i)
                add_slot(page_at(pages, page_slots, s), s % page_slots, dims, padded, sums)
            count = read_f32(rest)
            total = count + np.float32(n)
            mean = rest + 4 * REST_KEY
            move_mean(mean, dims, count, sums, total)
            move_mean(mean + 4 * padded, dims, count, sums + 4 * dims, total)
            write_f32(rest, min(total, _MOST))

    return join
