"""The tables of a step for kernels: the cache of each row, and the rows that continue.

Tables and lists: `kernels_cpu/program/abi.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.kernels_cpu.attention.launch import (
    chunk_count,
    mass_row_bytes,
    mass_workspace_bytes,
    partials_bytes,
)
from edgetok.kernels_cpu.program.abi import (
    CTX_HEAD,
    CTX_PART_TABLE,
    CTX_PARTS,
    CTX_SLOTS,
    CTX_TAIL,
    CTX_TOKENS,
    LIST_COUNT,
    LIST_PARTS,
    LIST_ROWS,
    PART_CHUNKS,
    PART_FIRST,
    PART_MASS,
    PART_MASS_SLOTS,
    PART_PARTIALS,
    PART_ROWS,
    PART_SLOTS,
)
from edgetok.kernels_cpu.program.memory import aligned_bytes
from edgetok.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One sequence's rows of a step.

    Attributes:
        part: int64 [PART_SLOTS], what its cache says of itself.
        used: slots of its longest record that hold anything.
        rows: how many rows it has.
        tail: how many of its last rows go on beyond the last layer's keys and values.
        logits: how many of its last rows go on to the output head, at most `tail`.
    """

    part: npt.NDArray[np.int64]
    used: int
    rows: int
    tail: int
    logits: int


class StepTables:
    """Tables of one step after the other, and the memory that only a step needs.

    Attributes:
        ctx: int64 [CTX_SLOTS], the run's state.
        ctx_address: where it is.
        tail_rows: how many rows go on beyond the last layer's keys and values.
        head_rows: how many of them go on to the output head.
    """

    def __init__(self, spec: DecoderSpec, *, threads: int, rows: int) -> None:
        """Allocate for steps of at most `rows` rows."""
        # Properties of the decoder that look at every layer.
        self._heads, self._kv_heads, self._threads = spec.num_heads, spec.most_kv_heads, threads
        self._chunk_bytes = partials_bytes(spec.num_heads, spec.most_head_dim, 1)
        self.ctx = np.zeros(CTX_SLOTS, np.int64)
        self._parts = np.zeros((2, rows, PART_SLOTS), np.int64)
        self._tail = np.zeros(rows, np.int32)
        self._head = np.zeros(rows, np.int32)
        self._numbers = np.arange(rows, dtype=np.int32)
        self._scratch = aligned_bytes(0)
        # Asking an array for its address takes microseconds, and a step asks for all of them.
        self.ctx_address: int = self.ctx.ctypes.data
        self._body_address, self._tail_parts_address = (p.ctypes.data for p in self._parts)
        self._scratch_address = 0
        self._tail_address, self._head_address = self._tail.ctypes.data, self._head.ctypes.data
        self.tail_rows = self.head_rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes of everything."""
        arrays = (self._parts, self._tail, self._head, self._numbers, self._scratch)
        return sum(array.nbytes for array in arrays)

    def fill(self, shares: Sequence[Share]) -> None:
        """Set everything for a step of these sequences' rows, one after the other."""
        body, tail = self._parts
        first = going = wanted = 0
        for row, share in enumerate(shares):
            body[row] = share.part
            body[row, PART_FIRST], body[row, PART_ROWS] = first, share.rows
            first += share.rows
            on = self._numbers[first - share.tail : first]
            self._tail[going : going + share.tail] = on
            going += share.tail
            self._head[wanted : wanted + share.logits] = self._numbers[going - share.logits : going]
            wanted += share.logits
        self._place_scratch(shares)
        tail[: len(shares)] = body[: len(shares)]
        before = 0
        for row, share in enumerate(shares):
            tail[row, PART_FIRST], tail[row, PART_ROWS] = before, share.tail
            before += share.tail
        self.tail_rows, self.head_rows = going, wanted
        ctx = self.ctx
        ctx[CTX_TOKENS], ctx[CTX_PARTS] = first, len(shares)
        ctx[CTX_PART_TABLE] = self._body_address
        ctx[CTX_TAIL + LIST_ROWS], ctx[CTX_TAIL + LIST_COUNT] = self._tail_address, going
        ctx[CTX_TAIL + LIST_PARTS] = self._tail_parts_address
        self.choose_head(0, wanted)

    def choose_head(self, first: int, count: int) -> None:
        """Let rows first..first + count of those that want logits go on to the head."""
        self.ctx[CTX_HEAD + LIST_ROWS] = self._head_address + 4 * first
        self.ctx[CTX_HEAD + LIST_COUNT] = count

    def _place_scratch(self, shares: Sequence[Share]) -> None:
        """Name each part's memory for partial results and attention mass; it grows when needed."""
        table, heads = self._parts[0], self._heads
        places: list[tuple[int, int, int]] = []  # row, slot, offset
        total = 0
        for row, share in enumerate(shares):
            if 1 in (share.rows, share.tail):
                table[row, PART_CHUNKS] = chunks = chunk_count(share.used)
                places.append((row, PART_PARTIALS, total))
                total += chunks * self._chunk_bytes
            if slots := int(share.part[PART_MASS_SLOTS]):
                places.append((row, PART_MASS, total))
                if share.rows == 1:
                    total += mass_row_bytes(slots, heads)
                else:
                    total += mass_workspace_bytes(slots, heads, self._kv_heads, self._threads)
        if total > self._scratch.nbytes:
            self._scratch = aligned_bytes(total + total // 4)
            self._scratch_address = int(self._scratch.ctypes.data)
        base = self._scratch_address
        for row, slot, offset in places:
            table[row, slot] = base + offset
