"""Instructions of recurrent layers, run on rows of several caches, and what such a cache holds."""

from __future__ import annotations

import ctypes

import numpy as np

from edgetok.kernels_cpu.program import tables
from edgetok.kernels_cpu.program.abi import (
    CTX_PART_TABLE,
    CTX_PARTS,
    CTX_SLOTS,
    CTX_TOKENS,
    PART_FIRST,
    PART_ROWS,
    PART_SEEN,
    PART_SLOTS,
    PART_STATES,
)
from edgetok.kernels_cpu.recurrent.launch import STATE_ROWS


class State:
    """A cache's ring of one layer, last in its table of states: NaN where nothing was written."""

    def __init__(self, guard, columns, rows=STATE_ROWS, states=4):
        self.ring = guard(np.full((rows, columns), np.nan, np.float32))
        self.table = np.array([*[0] * (states - 1), self.ring.ctypes.data], np.int64)
        self.seen = 0


def in_pieces(texts, states, rng, most, step):
    """Results of each text, a tuple of arrays by token, read in random pieces of up to `most`.

    `step(parts)` gives the results of each part: its state and the pieces of its arrays.
    """
    found = [[] for _ in texts]
    while any(state.seen < len(text[0]) for state, text in zip(states, texts, strict=True)):
        parts, who = [], []
        for i, (state, text) in enumerate(zip(states, texts, strict=True)):
            count = min(len(text[0]) - state.seen, int(rng.integers(1, most + 1)))
            if count:
                cut = slice(state.seen, state.seen + count)
                parts.append((state, *(array[cut] for array in text)))
                who.append(i)
        for i, part in zip(who, step(parts), strict=True):
            found[i].append(part)
    return [np.concatenate(values) for values in found]


def run(made, rows, threads, parts=()):
    """Run an instruction on `rows` rows, of which each part (state, rows) has its own."""
    table = np.zeros((len(parts), PART_SLOTS), np.int64)
    first = 0
    for row, (state, count) in zip(table, parts, strict=True):
        row[PART_STATES], row[PART_SEEN] = state.table.ctypes.data, state.seen
        row[PART_FIRST], row[PART_ROWS] = first, count
        first += count
        state.seen += count
    ctx = np.zeros(CTX_SLOTS, np.int64)
    ctx[CTX_TOKENS], ctx[CTX_PARTS], ctx[CTX_PART_TABLE] = rows, len(parts), table.ctypes.data
    instruction = tables.table([made])[0]
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(instruction[0]))
    for tid in range(threads):
        call(instruction.ctypes.data, ctx.ctypes.data, tid, threads)
