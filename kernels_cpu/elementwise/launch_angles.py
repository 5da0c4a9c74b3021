"""Angles computed by one call from Python, outside a program. No numba here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.elementwise.launch import (
    ANGLES_COS,
    ANGLES_FREQUENCIES,
    ANGLES_POSITIONS,
    ANGLES_SIN,
    angles,
)
from edgetok.kernels_cpu.program.abi import CTX_SLOTS, CTX_TOKENS
from edgetok.kernels_cpu.program.loader import Kernels

Floats = npt.NDArray[np.float32]


class Angles:
    """Computes cosines and sines of one rope, in buffers that stay. One caller at a time."""

    def __init__(
        self,
        kernels: Kernels,
        positions: npt.NDArray[np.int32],
        cos: Floats,
        sin: Floats,
        factor: float,
    ) -> None:
        """Check and remember the buffers.

        Args:
            kernels: the module `elementwise.angles` among them.
            positions: [rows] int32, C-contiguous; read by `fill`.
            cos: [rows, pairs] float32, C-contiguous; written by `fill`.
            sin: likewise.
            factor: what all are multiplied by.

        Raises:
            ShapeError: a buffer is of another type, shape or layout.
        """
        self._buffers = positions, cos, sin
        self._shape = (len(positions), cos.shape[-1])
        for name, array, dtype, shape in (
            ("positions", positions, np.int32, self._shape[:1]),
            ("cos", cos, np.float32, self._shape),
            ("sin", sin, np.float32, self._shape),
        ):
            _check(name, array, dtype, shape)
        one = angles(
            kernels,
            positions=positions.ctypes.data,
            frequencies=0,
            factor=factor,
            pairs=self._shape[1],
            cos=cos.ctypes.data,
            sin=sin.ctypes.data,
            wait=False,
        )
        self._instruction, self._ctx = np.array(one, np.int64), np.zeros(CTX_SLOTS, np.int64)
        self._addresses = self._instruction.ctypes.data, self._ctx.ctypes.data
        self._call = kernels.function("angles")
        self._begins = [
            (slot, array.ctypes.data, array.strides[0])
            for slot, array in (
                (ANGLES_POSITIONS, positions),
                (ANGLES_COS, cos),
                (ANGLES_SIN, sin),
            )
        ]
        self._first = 0
        self._frequencies: npt.NDArray[np.float64] | None = None

    def fill(self, first: int, end: int, frequencies: npt.NDArray[np.float64]) -> None:
        """cos = factor cos(position * frequency) and sin likewise, of rows first..end-1.

        Args:
            first: see above; 0 <= first <= end <= rows.
            end: see above.
            frequencies: [pairs] float64, C-contiguous, radians a position; not changed between
                calls that name the same array.

        Raises:
            ShapeError: there are no such rows, or frequencies of another type, shape or layout.
        """
        if not 0 <= first <= end <= self._shape[0]:
            raise ShapeError(f"rows {first}..{end} of angles, expected 0..{self._shape[0]}")
        if frequencies is not self._frequencies:
            _check("frequencies", frequencies, np.float64, self._shape[1:])
            self._frequencies = frequencies
            self._instruction[ANGLES_FREQUENCIES] = frequencies.ctypes.data
        if first != self._first:
            self._first = first
            for slot, base, row_bytes in self._begins:
                self._instruction[slot] = base + first * row_bytes
        self._ctx[CTX_TOKENS] = end - first
        self._call(*self._addresses, 0, 1)


def _check(
    name: str, array: npt.NDArray[np.generic], dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ShapeError(
            f"{name} is {array.dtype} {array.shape}, expected contiguous {np.dtype(dtype)} {shape}"
        )
