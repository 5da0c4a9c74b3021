"""Round to nearest: the quantiser that needs no calibration, and the grid that the others use.

    w ~ (q - zero) * scale,  q in 0..2^bits - 1, one scale and zero for `group_size` inputs

Scales are rounded to float16, as they are stored, before any code is computed, so that the codes
are the nearest for the weights that will be used.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantise.level_table import quantise as table_nearest
from edgetok.converter.quantised import (
    _CHUNK_WEIGHTS,
    Floats,
    Quantised,
    float16_scales,
    joined,
)
from edgetok.converter.workers import pieces_of, side_by_side
from edgetok.formats.layout import TensorFormat


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


def quantise(
    weight: Floats, bits: int, group_size: int, *, symmetric: bool = False, threads: int = 1
) -> Quantised:
    """Round each weight to the nearest of 2^bits levels between its group's least and greatest.

    Args:
        weight: [N, K] float32, finite; see `fits_float16_scales`.
        bits: 2 to 8.
        group_size: inputs that share a scale; K need not be a multiple.
        symmetric: no zero points.
        threads: number of ranges of rows computed at once.
    """
    rows, inputs = weight.shape
    groups = -(-inputs // group_size)
    codes = np.empty((rows, inputs), np.uint8)
    scales = np.empty((rows, groups), np.float16)
    zeros = np.empty((rows, groups), np.uint8)

    def piece(at: slice) -> None:
        _quantise_rows(weight[at], codes[at], scales[at], zeros[at], bits, group_size, symmetric)

    pieces = pieces_of(rows, max(1, _CHUNK_WEIGHTS // inputs))
    side_by_side(threads, [partial(piece, at) for at in pieces])
    return Quantised(codes, scales, None if symmetric else zeros, bits, group_size)


def nearest(weight: Floats, form: TensorFormat, *, threads: int = 1) -> Quantised:
    """Round each weight of a matrix [N, K] to the nearest of a format's levels."""
    if not form.table:
        symmetric = not form.zeros
        return quantise(weight, form.bits, form.group_size, symmetric=symmetric, threads=threads)
    works = [partial(table_nearest, weight[at], form.group_size) for at in pieces_of(len(weight))]
    return joined(side_by_side(threads, works))


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
