"""One pool of slots for all heads of a bounded cache, in the layout of `attention/launch.py`.

Every array (keys, values, scales, positions, ...) is as long as the pool; a head owns a range of
it. All bytes are one allocation that never grows. What is read here is for choosing slots and
turning keys; kernels read the same bytes through records.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import SessionError
from edgetok.kernels_cpu.attention.launch import EMPTY, SLOT_TILE
from edgetok.kernels_cpu.linear.layout import round_up
from edgetok.runtime.cpu.stored_rows import ALIGNMENT_BYTES, Bytes, Floats, Keys, Values, row_bytes

Ints = npt.NDArray[np.int32]


def slot_bytes(head_dim: int, kv_bits: int) -> int:
    """Bytes of one slot: key, value, scales, position, index of its token, attention mass."""
    scales = 8 if kv_bits <= 8 else 0
    return 2 * row_bytes(head_dim, kv_bits) + scales + 12


class SlotPool:
    """Slots of `heads` heads (layer and KV head), each a range.

    Attributes:
        start: [heads], first slot of each head; a multiple of SLOT_TILE.
        size: [heads], how many slots it has; likewise.
        positions: int32 [slots], the position that the key is rotated to; EMPTY without a token.
        tokens: int32 [slots], which token of the conversation it is, counted from 0.
        mass: float32 [slots], attention that it got so far.
        keys: those of all slots.
    """

    def __init__(
        self, memory: Bytes, *, heads: int, slots: int, head_dim: int, kv_bits: int
    ) -> None:
        """Lay out and empty.

        Args:
            memory: uint8 [at least `nbytes`], 64-byte aligned.
            heads: how many heads share the pool.
            slots: of each head; a multiple of SLOT_TILE.
            head_dim: D.
            kv_bits: 4, 8, 16 or 32.
        """
        self.head_dim, self.kv_bits = head_dim, kv_bits
        self.slots = heads * slots
        self.start = np.arange(heads, dtype=np.int64) * slots
        self.size = np.full(heads, slots, np.int64)
        self._row_bytes = row_bytes(head_dim, kv_bits)
        self._at = 0
        self._memory = memory
        self._keys = self._take(self._row_bytes)
        self._values = self._take(self._row_bytes)
        self.scaled = kv_bits <= 8
        self._key_scales = self._take(4 if self.scaled else 0).view(np.float32)
        self._value_scales = self._take(4 if self.scaled else 0).view(np.float32)
        self.positions: Ints = self._take(4).view(np.int32)
        self.tokens: Ints = self._take(4).view(np.int32)
        self.mass: Floats = self._take(4).view(np.float32)
        self.positions[:] = EMPTY
        scales = self._key_scales if self.scaled else None
        self.keys = Keys(self._keys, scales, head_dim, kv_bits)
        scales = self._value_scales if self.scaled else None
        self._stored_values = Values(self._values, scales, head_dim, kv_bits)

    def check(self, memory: Bytes, length_tokens: int, position: int) -> None:
        """Whether another pool's bytes could be this one's.

        Raises:
            SessionError: a slot holds a token or position that cannot be.
        """
        first = self.positions.ctypes.data - self._memory.ctypes.data
        positions = memory[first : first + 4 * self.slots].view(np.int32)
        first = self.tokens.ctypes.data - self._memory.ctypes.data
        tokens = memory[first : first + 4 * self.slots].view(np.int32)
        held = positions != EMPTY
        for found, end in ((positions[held], position), (tokens[held], length_tokens)):
            if found.size and (int(found.min()) < 0 or int(found.max()) >= end):
                raise SessionError("the saved cache holds tokens that cannot be; it is damaged")

    @staticmethod
    def nbytes(heads: int, slots: int, head_dim: int, kv_bits: int) -> int:
        """Bytes of a pool."""
        total = heads * slots * slot_bytes(head_dim, kv_bits)
        return total + 8 * ALIGNMENT_BYTES

    def addresses(self, head: int) -> tuple[int, int, int, int, int, int]:
        """Where a head's keys, values, scales of both, positions and mass begin."""
        at = int(self.start[head])

        def of(array: npt.NDArray[np.generic], row_bytes: int) -> int:
            return int(array.ctypes.data) + at * row_bytes if array.size else 0

        return (
            of(self._keys, self._row_bytes),
            of(self._values, self._row_bytes),
            of(self._key_scales, 4),
            of(self._value_scales, 4),
            of(self.positions, 4),
            of(self.mass, 4),
        )

    def held(self, head: int) -> npt.NDArray[np.int64]:
        """Slots of a head that hold a token, by pool number, ascending."""
        first = int(self.start[head])
        inside = self.positions[first : first + int(self.size[head])]
        return first + np.flatnonzero(inside != EMPTY)

    def free(self, head: int) -> npt.NDArray[np.int64]:
        """Slots of a head that hold none, counted from the head's first."""
        first = int(self.start[head])
        return np.flatnonzero(self.positions[first : first + int(self.size[head])] == EMPTY)

    def values(self, at: npt.NDArray[np.int64]) -> Floats:
        """Values of slots as float32 [n, D]."""
        return self._stored_values.read(at)

    def forget(self, at: npt.NDArray[np.int64]) -> None:
        """Empty slots."""
        self.positions[at] = EMPTY
        self.mass[at] = 0.0

    def _take(self, bytes_each: int) -> Bytes:
        end = self._at + self.slots * bytes_each
        part = self._memory[self._at : end]
        self._at = round_up(end, ALIGNMENT_BYTES)
        return part


def tiles(slots: int) -> int:
    """`slots` rounded down to what a range may have."""
    return slots // SLOT_TILE * SLOT_TILE
