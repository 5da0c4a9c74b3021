"""Memory that instructions point at; who makes a `Span` keeps its memory alive. No numba here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Span:
    """Readable (or writable) memory: address and how many bytes lie there."""

    address: int
    nbytes: int

    @classmethod
    def of(cls, array: npt.NDArray[np.generic]) -> Span:
        """The memory of a C-contiguous array, which the caller keeps alive.

        Raises:
            ShapeError: the array is not C-contiguous.
        """
        if not array.flags.c_contiguous:
            raise ShapeError(f"array of shape {array.shape} is not C-contiguous")
        return cls(array.ctypes.data, array.nbytes)


@dataclass(frozen=True, slots=True)
class Floats:
    """float32 [tokens_max, stride] at an address, of which `width` columns are used.

    A token's row begins `stride` floats after the one before, so that several results can lie side
    by side in one buffer.
    """

    address: int
    tokens_max: int
    width: int
    stride: int

    @classmethod
    def of(cls, array: npt.NDArray[np.float32], first: int = 0, width: int | None = None) -> Floats:
        """Columns first..first + width of a C-contiguous float32 array [T, stride].

        Raises:
            ShapeError: the array has another dtype or layout, or the columns are not inside.
        """
        if array.dtype != np.float32 or array.ndim != 2 or not array.flags.c_contiguous:
            raise ShapeError(
                f"array is {array.dtype} {array.shape}, expected C-contiguous float32 [T, K]"
            )
        width = array.shape[1] - first if width is None else width
        if not 0 <= first < first + width <= array.shape[1]:
            raise ShapeError(f"columns {first}..{first + width} of an array {array.shape}")
        return cls(array.ctypes.data + 4 * first, array.shape[0], width, array.shape[1])


def aligned_bytes(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes whose address is a multiple of 64."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]
