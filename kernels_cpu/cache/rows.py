"""Stored rows of slots, between pages and a block. For kernels.

A block has, head by head, the keys of its slots, their values, key scales and value scales, each
slot's bytes together; in a page (`runtime/cpu/page_layout.py`) units of KEY_TILE slots alternate,
and of VALUE_TILE slots where values have 8 bits or fewer.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.attention.launch import KEY_TILE, PAGE_FIELDS, PAGE_SLOTS, VALUE_TILE
from edgetok.kernels_cpu.cache.launch import (
    C_KV_BITS,
    G_ENTRIES,
    G_HEADS,
    G_HELD,
    G_KEY_BYTES,
    G_PAGES,
    G_ROWS,
    G_USED,
)
from edgetok.kernels_cpu.cache.tables import get, holds
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8
from edgetok.kernels_cpu.text.characters import write_u8

_PARTS = 4


@outline
def _copy_part(page: int, row: int, slot: int, size: int, unit: int, tile: int, out: int) -> None:
    """Copy a slot's part, `size` bytes, out of a page or, where `out` is 0, into it."""
    page += slot // tile * tile * size + slot % tile * unit
    for u in range(size // unit):
        for k in range(unit):
            there = page + u * tile * unit + k
            if out != 0:
                write_u8(row + u * unit + k, read_u8(there))
            else:
                write_u8(there, read_u8(row + u * unit + k))


@outline
def _copy_head(c: int, g: int, head: int, row: int, part: int, at: int, out: int) -> None:
    """Copy one part of all slots of a head."""
    bits = get(c, C_KV_BITS)
    size = get(g, G_KEY_BYTES + part)
    unit = 4
    tile = 1
    if part == 0:
        unit = 4 if bits <= 8 else bits // 8
        tile = KEY_TILE
    elif part == 1:
        unit = 1 if bits <= 8 else bits // 8
        tile = VALUE_TILE if bits <= 8 else 1
    entries = get(g, G_ENTRIES) + 8 * PAGE_FIELDS * head * (get(g, G_PAGES) + 1)
    for slot in range(read_i64(get(g, G_USED) + 8 * row)):
        if holds(g, row, slot):
            page = read_i64(entries + 8 * (slot // PAGE_SLOTS * PAGE_FIELDS + part))
            _copy_part(page, at, slot % PAGE_SLOTS, size, unit, tile, out)
            at += size


@outline
def copy_rows(c: int, g: int, at: int, out: int) -> Any:
    """Copy all slots of a group out of its pages or, where `out` is 0, into them."""
    for head in range(get(g, G_HEADS)):
        row = 0 if get(g, G_ROWS) == 1 else head
        held = read_i64(get(g, G_HELD) + 8 * row)
        for part in range(_PARTS):
            _copy_head(c, g, head, row, part, at, out)
            at += held * get(g, G_KEY_BYTES + part)
