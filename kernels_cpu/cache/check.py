"""A kernel that checks what a plan says of layers and states, before anything is made of it."""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.cache.launch import (
    C_LAYERS,
    C_PAIRS,
    C_SEEING_HEADS,
    C_SIZES,
    C_STATES,
    C_WEIGHTS_BYTES,
    C_WIDE,
    C_WIDE_HEADS,
    KEEP_CACHE,
    KEEP_RESULT,
    L_CENTRE,
    L_FACTOR,
    L_ROPE,
    L_WINDOW,
    LAYER,
    R_KV_HEADS,
    R_LAYERS,
    R_ROPES,
    R_STATES,
    S_DIMS,
    S_KEY_BYTES,
    S_KV_HEADS,
    S_VALUE_BYTES,
    SIZE,
    STATE,
    STATES,
)
from edgetok.kernels_cpu.cache.sizes import layer_of, run, stores
from edgetok.kernels_cpu.cache.tables import between, get, put
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8
from edgetok.kernels_cpu.text.characters import compared

_MOST_WINDOW = 1 << 28
_MOST_DIMS, _MOST_ROWS = 4096, 4096
_MOST_SLOT_BYTES, _MOST_COLUMNS = 1 << 16, 1 << 26
_STATE_INDEX, _STATE_ROWS, _STATE_COLUMNS, _STATE_NEEDED = range(4)


@outline
def _constants_fit(c: int, layer: int, size: int) -> Any:
    """Whether the constants of a layer's keys lie in the weights."""
    centre, factor = get(layer, L_CENTRE), get(layer, L_FACTOR)
    last = get(c, C_WEIGHTS_BYTES) - 4 * get(size, S_KV_HEADS) * get(size, S_DIMS)
    if centre == -1 and factor == -1:
        return True
    return between(centre, 0, last) and between(factor, 0, last) and (centre | factor) % 4 == 0


@outline
def _size_fits(c: int, layer: int, size: int) -> Any:
    window, rope = get(layer, L_WINDOW), get(layer, L_ROPE)
    heads, dims = get(size, S_KV_HEADS), get(size, S_DIMS)
    if not between(heads, 0, run(c, R_KV_HEADS)) or not between(dims, 1, _MOST_DIMS):
        return False
    if not between(get(size, S_KEY_BYTES), 1, _MOST_SLOT_BYTES):
        return False
    if not between(get(size, S_VALUE_BYTES), 1, _MOST_SLOT_BYTES):
        return False
    if not between(window, -1, _MOST_WINDOW) or not between(rope, -1, run(c, R_ROPES) - 1):
        return False
    if (window < 0 and heads != 0) or (window >= 0 and heads == 0):
        return False
    return window < 0 or rope < 0 or 2 * read_i64(get(c, C_PAIRS) + 8 * rope) <= dims


@outline
def _layers_fit(c: int) -> Any:
    layers, sizes, each = get(c, C_LAYERS), get(c, C_SIZES), 8 * len(SIZE)
    for i in range(run(c, R_LAYERS)):
        layer, size = layers + 8 * len(LAYER) * i, sizes + each * i
        if not _size_fits(c, layer, size) or not _constants_fit(c, layer, size):
            return False
        window = get(layer, L_WINDOW)
        for k in range(i):  # a group of a cache has one size
            before = get(layers + 8 * len(LAYER) * k, L_WINDOW)
            if before == window and window >= 0:
                if compared(sizes + each * k, each, size, each) != 0:
                    return False
                break  # which equals those before it
    return True


@outline
def _states_fit(c: int) -> Any:
    for i in range(run(c, R_STATES)):
        state = get(c, C_STATES) + 8 * len(STATE) * i
        rows = get(state, _STATE_ROWS)
        if not between(get(state, _STATE_INDEX), 0, STATES * run(c, R_LAYERS) - 1):
            return False
        if not between(rows, 2, _MOST_ROWS):
            return False
        if not between(get(state, _STATE_COLUMNS), 1, _MOST_COLUMNS):
            return False
        if not between(get(state, _STATE_NEEDED), 1, rows - 1):
            return False
    return True


@outline
def _count_heads(c: int) -> Any:
    """Count heads that see every token and wide ones; whether these can be."""
    wide, seeing = 0, 0
    table = get(c, C_WIDE)
    for head in range(run(c, R_LAYERS) * run(c, R_KV_HEADS)):
        if stores(c, head) and get(layer_of(c, head), L_WINDOW) == 0:
            seeing += 1
            if table != 0 and read_u8(table + head) != 0:
                wide += 1
    put(c, C_WIDE_HEADS, wide)
    put(c, C_SEEING_HEADS, seeing)
    return table == 0 or between(wide, 1, seeing - 1)


@kernel
def cache_check(instr: int, ctx: int, tid: int, threads: int) -> None:
    """The result is 1 where all that is said of the model can be."""
    c = get(instr, KEEP_CACHE)
    fits = _layers_fit(c) and _states_fit(c) and _count_heads(c)
    put(instr, KEEP_RESULT, 1 if fits else 0)
