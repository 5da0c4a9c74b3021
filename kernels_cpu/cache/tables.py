"""Tables of slots: filling, emptying, lists of free slots. For kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.attention.launch import EMPTY
from edgetok.kernels_cpu.cache.launch import (
    C_BLOCK_TOKENS,
    C_GROUPS,
    G_CHOSEN,
    G_FREE_COUNT,
    G_FREE_SLOTS,
    G_HELD,
    G_LIMIT,
    G_MASS,
    G_POSITIONS,
    G_REST_BYTES,
    G_RESTS,
    G_ROWS,
    G_TAKEN,
    G_TOKENS,
    G_USED,
    GROUP,
)
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import (
    read_i32,
    read_i64,
    read_int,
    write_f32,
    write_i32,
    write_i64,
)

_GROUP_BYTES = 8 * len(GROUP)


@inline
def get(table: int, field: int) -> Any:
    """A field of a table."""
    return read_i64(table + 8 * field)


@inline
def put(table: int, field: int, value: int) -> None:
    """Set a field of a table."""
    write_i64(table + 8 * field, value)


@inline
def between(value: int, low: int, high: int) -> Any:
    """Whether low <= value <= high."""
    return value >= low and value <= high


@inline
def group_at(c: int, i: int) -> Any:
    """Address of a group."""
    return get(c, C_GROUPS) + _GROUP_BYTES * i


@inline
def place(g: int, field: int, row: int, slot: int) -> Any:
    """Address of a slot's entry in one of a group's tables of 4 bytes each."""
    return get(g, field) + 4 * (row * get(g, G_LIMIT) + slot)


@inline
def holds(g: int, row: int, slot: int) -> Any:
    """Whether a slot holds a token."""
    return read_int(place(g, G_POSITIONS, row, slot)) != EMPTY


@outline
def most(values: int, count: int) -> Any:
    """The greatest of int64 [count] at an address; 0 for none."""
    found = 0
    for i in range(count):
        found = max(found, read_i64(values + 8 * i))
    return found


@outline
def total(values: int, count: int) -> Any:
    """The sum of int64 [count] at an address."""
    found = 0
    for i in range(count):
        found += read_i64(values + 8 * i)
    return found


@outline
def fill(g: int, row: int, slot: int, token: int, position: int) -> None:
    """Let a slot hold a token at a position."""
    if not holds(g, row, slot):
        held = get(g, G_HELD) + 8 * row
        write_i64(held, read_i64(held) + 1)
    write_i32(place(g, G_POSITIONS, row, slot), np.int32(position))
    write_i32(place(g, G_TOKENS, row, slot), np.int32(token))
    used = get(g, G_USED) + 8 * row
    write_i64(used, max(read_i64(used), slot + 1))


@outline
def empty(g: int, row: int, slot: int) -> None:
    """Empty a slot that holds a token."""
    write_i32(place(g, G_POSITIONS, row, slot), np.int32(EMPTY))
    if get(g, G_CHOSEN) != 0:
        write_f32(place(g, G_MASS, row, slot), np.float32(0.0))
    held = get(g, G_HELD) + 8 * row
    write_i64(held, read_i64(held) - 1)
    used = get(g, G_USED) + 8 * row
    end = read_i64(used)
    while end > 0 and not holds(g, row, end - 1):
        end -= 1
    write_i64(used, end)


@outline
def copy_words(to: int, source: int, count: int) -> None:
    """Copy `count` numbers of 4 bytes each."""
    for i in range(count):
        write_i32(to + 4 * i, read_i32(source + 4 * i))


@outline
def clear_rests(g: int) -> None:
    """Let the rests of a group's heads stand for nothing, where there are any."""
    for i in range(get(g, G_ROWS) * get(g, G_REST_BYTES) // 4):
        write_f32(get(g, G_RESTS) + 4 * i, np.float32(0.0))


@outline
def list_free(c: int, g: int) -> None:
    """List the first free slots of each head anew, at most 2 * block_tokens."""
    stride = 2 * get(c, C_BLOCK_TOKENS)
    room = min(get(g, G_LIMIT) - most(get(g, G_HELD), get(g, G_ROWS)), stride)
    for row in range(get(g, G_ROWS)):
        listed = get(g, G_FREE_SLOTS) + 4 * stride * row
        n = 0
        slot = 0
        while n < room:
            if not holds(g, row, slot):
                write_i32(listed + 4 * n, np.int32(slot))
                n += 1
            slot += 1
    put(g, G_FREE_COUNT, room)
    put(g, G_TAKEN, 0)
