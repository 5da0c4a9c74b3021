"""Angles computed by one call from Python, outside a program. No numba here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.elementwise.launch import angles
from edgetok.kernels_cpu.program.abi import CTX_SLOTS, CTX_TOKENS
from edgetok.kernels_cpu.program.loader import Kernels

Floats = npt.NDArray[np.float32]


class Angles:
    """Computes cosines and sines of positions. Any thread may call it; it takes microseconds."""

    def __init__(self, kernels: Kernels) -> None:
        """Use loaded kernels, the module `elementwise.angles` among them."""
        self._kernels = kernels
        self._call = kernels.function("angles")

    def __call__(
        self,
        positions: npt.NDArray[np.int32],
        frequencies: npt.NDArray[np.float64],
        factor: float,
        cos: Floats,
        sin: Floats,
    ) -> None:
        """cos = factor cos(position * frequency) and sin likewise, computed in float64.

        Args:
            positions: [T] int32, C-contiguous.
            frequencies: [pairs] float64, C-contiguous, radians a position.
            factor: see above.
            cos: [at least T, pairs] float32, C-contiguous; the first T rows are written.
            sin: likewise.

        Raises:
            ShapeError: an array is of another type, shape or layout.
        """
        T, pairs = positions.size, frequencies.size
        for name, array, dtype, shape in (
            ("positions", positions, np.int32, (T,)),
            ("frequencies", frequencies, np.float64, (pairs,)),
            ("cos", cos, np.float32, (max(T, len(cos)), pairs)),
            ("sin", sin, np.float32, (max(T, len(sin)), pairs)),
        ):
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ShapeError(
                    f"{name} is {array.dtype} {array.shape}, expected contiguous "
                    f"{np.dtype(dtype)} {shape}"
                )
        instruction = np.array(
            angles(
                self._kernels,
                positions=positions.ctypes.data,
                frequencies=frequencies.ctypes.data,
                factor=factor,
                pairs=pairs,
                cos=cos.ctypes.data,
                sin=sin.ctypes.data,
                wait=False,
            ),
            np.int64,
        )
        ctx = np.zeros(CTX_SLOTS, np.int64)
        ctx[CTX_TOKENS] = T
        self._call(instruction.ctypes.data, ctx.ctypes.data, 0, 1)
