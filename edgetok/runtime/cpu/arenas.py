"""Addresses of a plan: a segment and an offset, until the plan is bound to memory.

A plan points into a few segments. While it is made, an address is one integer, the segment in its
highest byte, so that launchers compute with it as with any address. Other numbers of an instruction
are smaller than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.plan.launch import Segment as Segment
from edgetok.kernels_cpu.program.tables import Table

ALIGNMENT_BYTES = 64
_SEGMENT_BITS = 56
_OFFSETS = (1 << _SEGMENT_BITS) - 1


BY_THREAD = (Segment.ATTENTION, Segment.LINEAR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An array in a segment: [rows, columns] of `dtype` from `offset` bytes on."""

    segment: Segment
    offset: int
    rows: int
    columns: int
    dtype: str = "float32"

    @property
    def address(self) -> int:
        """The address of its first byte, as a plan has it."""
        return address_in(self.segment, self.offset)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.rows * self.columns * np.dtype(self.dtype).itemsize

    def view(self, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.generic]:
        """The array in its segment's memory."""
        flat = memory[self.offset : self.offset + self.nbytes]
        return flat.view(self.dtype).reshape(self.rows, self.columns)


class Arena:
    """Hands out a segment piece by piece, each at a multiple of 64 bytes."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.nbytes = 0

    def take(self, nbytes: int) -> int:
        """The address of so many bytes more."""
        at = self.nbytes
        self.nbytes = at + -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return address_in(self.segment, at)

    def array(self, rows: int, columns: int, dtype: str = "float32") -> Place:
        """Room for an array."""
        made = Place(
            segment=self.segment, offset=self.nbytes, rows=rows, columns=columns, dtype=dtype
        )
        self.take(made.nbytes)
        return made


def address_in(segment: Segment, offset: int) -> int:
    """The address of an offset in a segment."""
    return segment << _SEGMENT_BITS | offset


def relocations(table: Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers of a table that are addresses.

    Returns:
        Indices into the flat table, and the segment of each; ascending.
    """
    segments = table.reshape(-1) >> _SEGMENT_BITS
    at = np.flatnonzero(np.isin(segments, list(Segment)))
    return at, segments[at]


def offsets(table: Table) -> Table:
    """The table with offsets in the place of addresses."""
    made = table.copy()
    at, _ = relocations(table)
    made.reshape(-1)[at] &= _OFFSETS
    return made


def addressed(table: Table, at: npt.NDArray[np.int64], segments: npt.NDArray[np.int64]) -> Table:
    """The inverse of `offsets` and `relocations`."""
    made = table.copy()
    made.reshape(-1)[at] |= segments << _SEGMENT_BITS
    return made


def check(table: Table, sizes: Mapping[Segment, int]) -> None:
    """Refuse addresses outside of their segments.

    Raises:
        ShapeError: one is, or has a segment that is not there.
    """
    at, segments = relocations(table)
    found = table.reshape(-1)[at] & _OFFSETS
    for segment in Segment:
        outside = found[segments == segment]
        if outside.size and int(outside.max()) >= sizes.get(segment, 0):
            raise ShapeError(
                f"an instruction points to byte {int(outside.max()):,} of {segment.name}, expected "
                f"fewer than {sizes.get(segment, 0):,}"
            )


def bound(table: Table, bases: Mapping[Segment, int], kernels: npt.NDArray[np.int64]) -> Table:
    """The table with real addresses.

    Args:
        table: [count, slots] with addresses of segments.
        bases: address of each segment that it points into, but for KERNELS.
        kernels: addresses of the plan's kernels, in order.
    """
    made = table.copy()
    flat = made.reshape(-1)
    at, segments = relocations(table)
    for segment in np.unique(segments):
        here = at[segments == segment]
        offset = flat[here] & _OFFSETS
        flat[here] = kernels[offset] if segment == Segment.KERNELS else bases[segment] + offset
    return made
