"""Layout of a page of slots on the CPU; reading and writing its keys and values.

A page has up to PAGE_SLOTS slots of every head (layer and KV head) of a group. Of each head, one
after the other: keys, values, key scales, value scales, each in the layout of
`attention/launch.py`. The last page of a group has only the slots that are left, so how many slots
a page has follows from its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.key_constants import KeyConstants
from edgetok.cache.pages import PageList
from edgetok.kernels_cpu.attention.launch import (
    KEY_TILE,
    PAGE_SLOTS,
    VALUE_TILE,
    key_bytes,
    scale_bytes,
    value_bytes,
)
from edgetok.runtime.cpu.stored_rows import Bytes, Floats, Keys, Places, Values


class PageLayout:
    """Pages of a group of layers.

    Attributes:
        heads: layers times KV heads.
        head_dim: D.
        sizes: bytes of a slot's key, value, key scale and value scale, as they follow each other.
        slot_bytes: bytes of one slot of one head.
    """

    def __init__(
        self,
        heads: int,
        limit: int,
        head_dim: int,
        kv_bits: int,
        constants: KeyConstants | None = None,
    ) -> None:
        """Lay out `limit` slots of each head; `constants` are [heads, D]."""
        self.heads, self._limit, self._constants = heads, limit, constants
        self.head_dim, self._bits = head_dim, kv_bits
        scale = scale_bytes(kv_bits)
        rows = key_bytes(head_dim, kv_bits), value_bytes(head_dim, kv_bits)
        self.sizes = (*rows, scale, scale)
        self.slot_bytes = sum(self.sizes)

    @property
    def pages(self) -> int:
        """Pages when all slots exist."""
        return -(-self._limit // PAGE_SLOTS)

    def bytes_of(self, page: int) -> int:
        """Bytes of page number `page`."""
        return self.heads * min(PAGE_SLOTS, self._limit - page * PAGE_SLOTS) * self.slot_bytes

    def slots_of(self, memory: Bytes) -> int:
        """Slots of each head in a page."""
        return memory.nbytes // (self.heads * self.slot_bytes)

    def addresses(self, memory: Bytes) -> npt.NDArray[np.int64]:
        """Addresses of each head's keys, values, key scales and value scales: int64 [heads, 4]."""
        slots = self.slots_of(memory)
        offsets = slots * np.cumsum([0, *self.sizes[:-1]], dtype=np.int64)
        heads = np.arange(self.heads, dtype=np.int64) * (slots * self.slot_bytes)
        return int(memory.ctypes.data) + heads[:, None] + offsets

    def rows(self, memory: Bytes, head: int) -> tuple[Keys, Values]:
        """A head's keys and values in a page."""
        slots = self.slots_of(memory)
        at = head * slots * self.slot_bytes
        ends = slots * np.cumsum(self.sizes)
        part = memory[at : at + int(ends[-1])]
        keys, values, key_scales, value_scales = np.split(part, ends[:-1])
        scaled = self.sizes[2] > 0
        constants = None if self._constants is None else self._constants[head]
        key_words = key_scales.view("f4") if scaled else None
        value_words = value_scales.view("f4") if scaled else None
        return (
            Keys(keys, key_words, self.head_dim, self._bits, constants),
            Values(values, value_words, self.head_dim, self._bits),
        )

    def copy(self, page: Bytes, to: Bytes) -> None:
        """Copy a page's slots to another page, as many as both have."""
        if page.nbytes == to.nbytes:
            to[:] = page
        else:
            self.put(to, self.take(page, min(self.slots_of(page), self.slots_of(to))))

    def take(self, memory: Bytes, slots: int) -> tuple[Bytes, ...]:
        """The first `slots` slots of all heads in a page, each row by itself: copies.

        Returns:
            uint8 [heads, slots, n]: keys, values, key scales and value scales; of the latter two n
            is 0 where there are none.
        """
        made = []
        for part, tile in self._parts(memory):
            count = -(-slots // tile)
            rows = part[:, :count].transpose(0, 1, 3, 2)  # [heads, tiles, tile, row / unit]
            made.append(np.ascontiguousarray(rows).view(np.uint8))
            made[-1] = made[-1].reshape(self.heads, count * tile, -1)[:, :slots]
        return tuple(made)

    def put(self, memory: Bytes, rows: tuple[Bytes, ...]) -> None:
        """Write what `take` gave into a page's first slots."""
        for (part, tile), given in zip(self._parts(memory), rows, strict=True):
            slots = given.shape[1]
            count = -(-slots // tile)
            whole = part[:, :count]
            if slots == count * tile:
                wide = np.ascontiguousarray(given).view(part.dtype)
                wide = wide.reshape(self.heads, count, tile, -1)
            else:  # what the last tile holds besides stays
                wide = np.ascontiguousarray(whole.transpose(0, 1, 3, 2))
                flat = wide.view(np.uint8).reshape(self.heads, count * tile, -1)
                flat[:, :slots] = given
            whole[...] = wide.transpose(0, 1, 3, 2)

    def _parts(self, memory: Bytes) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """Views [heads, tiles, row / unit, tile] of all heads' arrays, and their tiles.

        A unit is what lies together of a slot, as one number.
        """
        slots, bits = self.slots_of(memory), self._bits
        heads = memory.reshape(self.heads, slots * self.slot_bytes)
        key_unit = 4 if bits <= 8 else bits // 8
        value_tile, value_unit = (VALUE_TILE, 1) if bits <= 8 else (1, bits // 8)
        at = 0
        tiles, units = (KEY_TILE, value_tile, 1, 1), (key_unit, value_unit, 4, 4)
        for size, tile, unit in zip(self.sizes, tiles, units, strict=True):
            part = heads[:, at : at + slots * size].view(f"u{unit}")
            yield part.reshape(self.heads, slots // tile, size // unit, tile), tile
            at += slots * size


class PagedRows:
    """The keys, or the values, of one head across a group's pages."""

    def __init__(self, layout: PageLayout, pages: PageList, head: int, which: int) -> None:
        """View them: `which` is 0 for keys, 1 for values."""
        self._layout, self._pages, self._head, self._which = layout, pages, head, which

    def read(self, at: Places) -> Floats:
        """Return float32 [n, D]."""
        made = np.empty((len(at), self._layout.head_dim), np.float32)
        for rows, slots, places in self._split(at):
            made[places] = rows.read(slots)
        return made

    def write(self, at: Places, x: Floats) -> None:
        """Store x [n, D] as `kv_append` does."""
        for rows, slots, places in self._split(at):
            rows.write(slots, x[places])

    def _split(self, at: Places) -> Iterator[tuple[Keys | Values, Places, Places]]:
        """Yield, for each page of `at`: its rows, the slots in it, and their places in `at`."""
        number = at // PAGE_SLOTS
        for page in np.unique(number).tolist():
            places = np.flatnonzero(number == page)
            memory = self._pages.pages[page].memory
            rows = self._layout.rows(memory, self._head)[self._which]
            yield rows, at[places] - page * PAGE_SLOTS, places
