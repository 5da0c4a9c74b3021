"""A matrix as integers, scales and zero points, and what float16 scales can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import UnsupportedError
from edgetok.formats.layout import SUPER_GROUP, TensorFormat

Floats = npt.NDArray[np.float32]


FLOAT16_MAX = 65504.0


_FLOAT16_SMALLEST_NORMAL = 2.0**-14


_CHUNK_WEIGHTS = 1 << 18  # 1 MB of float32, so that the steps of one chunk stay in the L2 cache


@dataclass(frozen=True, slots=True)
class Quantised:
    """A quantised layer: (code - zero) * scale, code * scale + offset or table[code] * scale.

    Attributes:
        codes: [N, K] uint8, 0..2^bits - 1.
        scales: [N, G] float16, G = ceil(K / group_size); int8 where there are super-scales.
        zeros: [N, G] uint8, or None where every zero point is 2^(bits - 1), or 0 with offsets.
        bits: width of a code.
        group_size: inputs that share a scale; the last group may be shorter.
        offsets: like scales, or None.
        super_scales: float16 [N, K / 256, 1]: the factor of scales; with offsets
            [N, K / 256, 2], of scales and of offsets; or None.
        table: [16] int8, the levels of codes of 4 bits in place of zero points; or None.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16] | npt.NDArray[np.int8]
    zeros: npt.NDArray[np.uint8] | None
    bits: int
    group_size: int
    offsets: npt.NDArray[np.float16] | npt.NDArray[np.int8] | None = None
    super_scales: npt.NDArray[np.float16] | None = None
    table: npt.NDArray[np.int8] | None = None

    @property
    def form(self) -> TensorFormat:
        """Return the format that holds it."""
        return TensorFormat(
            self.bits,
            self.group_size,
            zeros=self.zeros is not None,
            offsets=self.offsets is not None,
            supers=self.super_scales is not None,
            table=self.table is not None,
        )

    def rows(self, rows: slice | npt.NDArray[np.intp]) -> Quantised:
        """Return some outputs (rows of [N, K]) of the layer."""
        return replace(
            self,
            codes=self.codes[rows],
            scales=self.scales[rows],
            zeros=None if self.zeros is None else self.zeros[rows],
            offsets=None if self.offsets is None else self.offsets[rows],
            super_scales=None if self.super_scales is None else self.super_scales[rows],
        )

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
        """Codes less their zero points, or what they choose of a table: [N, K] float32."""
        if self.table is not None:
            return self.table.astype(np.float32)[self.codes]
        if self.offsets is not None:
            return self.codes.astype(np.float32)
        if self.zeros is None:
            return self.codes.astype(np.float32) - np.float32(1 << (self.bits - 1))
        wide = np.repeat(self.zeros, self.group_size, axis=1)[:, : self.codes.shape[1]]
        return self.codes.astype(np.float32) - wide

    def steps(self) -> Floats:
        """Scales as float32, which holds them exactly: [N, G]."""
        return self._floats(self.scales, 0, slice(None))

    def _dequantise_rows(self, rows: slice, out: Floats) -> None:
        K, g = out.shape[1], self.group_size
        whole = K // g * g
        scales = self._floats(self.scales, 0, rows)
        offsets = None if self.offsets is None else self._floats(self.offsets, 1, rows)
        table = None if self.table is None else self.table.astype(np.float32)
        if offsets is not None or table is not None:
            zeros = np.zeros(scales.shape, np.float32)
        elif self.zeros is None:
            zeros = np.full(scales.shape, 1 << (self.bits - 1), np.float32)
        else:
            zeros = self.zeros[rows].astype(np.float32)
        for first, end, size in ((0, whole, g), (whole, K, K - whole)):
            if first == end:
                continue
            groups = slice(first // g, -(-end // g))
            shape = (len(out), -1, size)
            codes = self.codes[rows, first:end]
            part = (codes.astype(np.float32) if table is None else table[codes]).reshape(shape)
            part -= zeros[:, groups, None]
            part *= scales[:, groups, None]
            if offsets is not None:
                part += offsets[:, groups, None]
            out[:, first:end] = part.reshape(len(out), end - first)

    def _floats(self, values: npt.NDArray[Any], which: int, rows: slice) -> Floats:
        """Scales (0) or offsets (1) of some rows as float32, which holds them exactly."""
        floats = values[rows].astype(np.float32)
        if self.super_scales is not None:
            factors = self.super_scales[rows, :, which].astype(np.float32)
            floats *= np.repeat(factors, SUPER_GROUP // self.group_size, axis=1)
        return floats


def below_each_other(name: str, parts: Sequence[Quantised | None]) -> Quantised | None:
    """Return the rows of several matrices as one; None where none of them has integers.

    Raises:
        UnsupportedError: some have none, or formats differ.
    """
    known = [part for part in parts if part is not None]
    if not known:
        return None
    tables = {None if part.table is None else part.table.tobytes() for part in known}
    if len(known) < len(parts) or len({part.form for part in known}) > 1 or len(tables) > 1:
        raise UnsupportedError(
            f"{name}: its {len(parts)} parts are quantised in different formats, expected one; "
            "convert the original, unquantised checkpoint"
        )

    return joined(known)


def joined(parts: Sequence[Quantised]) -> Quantised:
    """Return the rows of several matrices of one format, and one table, as one."""

    def whole(field: str) -> Any:
        values = [getattr(part, field) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    if len(parts) == 1:
        return parts[0]
    fields = ("codes", "scales", "zeros", "offsets", "super_scales")
    return replace(parts[0], **{field: whole(field) for field in fields})


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
