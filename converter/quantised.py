"""A matrix as integers, scales and zero points, and what float16 scales can hold."""

from __future__ import annotations

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
        """Return the weights that will be used: [N, K] float32."""
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


def fits_float16_scales(greatest: float, bits: int) -> bool:
    """Return whether weights up to `greatest` in magnitude have scales that fit into float16."""
    return 2 * greatest / ((1 << bits) - 1) < FLOAT16_MAX
