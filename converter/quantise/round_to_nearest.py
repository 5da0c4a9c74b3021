"""Round to nearest: the quantiser that needs no calibration, and the grid that the others use.

    w ~ (q - zero) * scale,  q in 0..2^bits - 1, one scale and zero for `group_size` inputs

Scales are rounded to float16, as they are stored, before any code is computed, so that the codes
are the nearest for the weights that will be used.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FLOAT16_MAX = 65504.0
_FLOAT16_SMALLEST_NORMAL = 2.0**-14
_CHUNK_WEIGHTS = 1 << 18  # 1 MB of float32, so that the steps of one chunk stay in the L2 cache


@dataclass(frozen=True, slots=True)
class Quantised:
    """A quantised linear layer.

    Attributes:
        codes: [N, K] uint8, 0..2^bits - 1.
        scales: [N, G] float16, G = ceil(K / group_size).
        zeros: [N, G] uint8, or None where every zero point is 2^(bits - 1).
        bits: width of a code.
        group_size: inputs that share a scale; the last group may be shorter.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    zeros: npt.NDArray[np.uint8] | None
    bits: int
    group_size: int

    def dequantise(self) -> Floats:
        """The weights that will be used: [N, K] float32."""
        N, K = self.codes.shape
        weights = np.empty((N, K), np.float32)
        step = max(1, _CHUNK_WEIGHTS // K)
        for first in range(0, N, step):
            rows = slice(first, first + step)
            self._dequantise_rows(rows, weights[rows])
        return weights

    def levels(self) -> Floats:
        """Codes less their zero points: [N, K] float32."""
        if self.zeros is None:
            return self.codes.astype(np.float32) - np.float32(1 << (self.bits - 1))
        wide = np.repeat(self.zeros, self.group_size, axis=1)[:, : self.codes.shape[1]]
        return self.codes.astype(np.float32) - wide

    def _dequantise_rows(self, rows: slice, out: Floats) -> None:
        K, g = out.shape[1], self.group_size
        whole = K // g * g
        scales = self.scales[rows].astype(np.float32)
        if self.zeros is None:
            zeros = np.full(scales.shape, 1 << (self.bits - 1), np.float32)
        else:
            zeros = self.zeros[rows].astype(np.float32)
        for first, end, size in ((0, whole, g), (whole, K, K - whole)):
            if first == end:
                continue
            groups = slice(first // g, -(-end // g))
            shape = (len(out), -1, size)
            part = self.codes[rows, first:end].astype(np.float32).reshape(shape)
            part -= zeros[:, groups, None]
            part *= scales[:, groups, None]
            out[:, first:end] = part.reshape(len(out), end - first)


def float16_scales(scales: Floats) -> npt.NDArray[np.float16]:
    """Round scales to float16; zero becomes one, and the subnormal ones are rounded up.

    A scale of zero belongs to a group of zeros, for which any scale will do. Below float16's normal
    range rounding down could lose half of the group's range.
    """
    rounded = scales.astype(np.float16)
    short = (rounded < scales) & (scales < _FLOAT16_SMALLEST_NORMAL)
    if short.any():
        rounded[short] = np.nextafter(rounded[short], np.float16(np.inf))
    rounded[scales == 0] = 1
    return rounded


def grid(
    low: Floats, high: Floats, bits: int, *, symmetric: bool = False
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """Scale and zero point that span `low` to `high`.

    Zero itself is always representable, as padding and pruned weights need it.

    Args:
        low: least weight of each group, any shape.
        high: greatest weight of each group.
        bits: width of a code.
        symmetric: keep the zero point at 2^(bits - 1).

    Returns:
        float16 scales and uint8 zero points, of the shape of `low`.
    """
    top = (1 << bits) - 1
    if symmetric:
        scales = float16_scales(np.maximum(-low, high) * np.float32(2 / top))
        return scales, np.full(low.shape, 1 << (bits - 1), np.uint8)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = float16_scales((high - low) * np.float32(1 / top))
    zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, top).astype(np.uint8)
    return scales, zeros


def fits_float16_scales(greatest: float, bits: int) -> bool:
    """Whether weights up to `greatest` in magnitude have scales that float16 holds."""
    return 2 * greatest / ((1 << bits) - 1) < FLOAT16_MAX


def quantise(
    weight: Floats, bits: int, group_size: int, *, symmetric: bool = False, threads: int = 1
) -> Quantised:
    """Round each weight to the nearest of 2^bits levels between its group's least and greatest.

    Args:
        weight: [N, K] float32, finite; see `fits_float16_scales`.
        bits: 2 to 8.
        group_size: inputs that share a scale; K need not be a multiple.
        symmetric: no zero points.
        threads: how many chunks of rows are computed at once.
    """
    rows, inputs = weight.shape
    groups = -(-inputs // group_size)
    codes = np.empty((rows, inputs), np.uint8)
    scales = np.empty((rows, groups), np.float16)
    zeros = np.empty((rows, groups), np.uint8)
    step = max(1, _CHUNK_WEIGHTS // inputs)

    def chunk(first: int) -> None:
        last = min(first + step, rows)
        _quantise_rows(
            weight[first:last],
            codes[first:last],
            scales[first:last],
            zeros[first:last],
            bits,
            group_size,
            symmetric,
        )

    starts = range(0, rows, step)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(chunk, starts))
    else:
        for first in starts:
            chunk(first)
    return Quantised(codes, scales, None if symmetric else zeros, bits, group_size)


def _quantise_rows(
    weight: Floats,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float16],
    zeros: npt.NDArray[np.uint8],
    bits: int,
    group_size: int,
    symmetric: bool,
) -> None:
    rows, inputs = weight.shape
    groups = scales.shape[1]
    padded = groups * group_size
    if padded == inputs:
        grouped = weight.reshape(rows, groups, group_size)
    else:
        wide = np.zeros((rows, padded), np.float32)
        wide[:, :inputs] = weight
        grouped = wide.reshape(rows, groups, group_size)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    scales[:], zeros[:] = grid(low, high, bits, symmetric=symmetric)
    levels = grouped / scales.astype(np.float32)[:, :, None]
    np.rint(levels, out=levels)
    levels += zeros.astype(np.float32)[:, :, None]
    np.clip(levels, 0, (1 << bits) - 1, out=levels)
    codes[:] = levels.reshape(rows, padded)[:, :inputs]
