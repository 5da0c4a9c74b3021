"""Tiles of recurrent states: STATE_TILE columns of float32, a row after the other.

A thread computes WIDE columns of a tile together, as two or four vectors. The states of a layer lie
as `launch.state_columns` says.
"""

from __future__ import annotations

from edgetok.kernels_cpu.recurrent.launch import STATE_TILE
from edgetok.kernels_cpu.simd.emit import LANES, inline
from edgetok.kernels_cpu.simd.memory import store_f32
from edgetok.kernels_cpu.simd.ops import zero_f32

FOUR = 4 * LANES <= STATE_TILE
WIDE = (4 if FOUR else 2) * LANES  # columns that are computed together
V1, V2, V3 = 4 * LANES, 8 * LANES, 12 * LANES  # bytes up to each vector of them
ROW_BYTES = 4 * STATE_TILE


@inline
def clear(columns, rows):  # type: ignore[no-untyped-def]
    """Zero WIDE columns of so many rows; `columns` is the address of the first."""
    for i in range(rows):
        store_f32(columns + ROW_BYTES * i, zero_f32())
        store_f32(columns + ROW_BYTES * i + V1, zero_f32())
        if FOUR:
            store_f32(columns + ROW_BYTES * i + V2, zero_f32())
            store_f32(columns + ROW_BYTES * i + V3, zero_f32())
