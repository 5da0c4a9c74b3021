"""Errors of quantised matrices."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.converter.workers import pieces_of, side_by_side

_CHUNK_WEIGHTS = 1 << 18


def squared_errors(
    weight: npt.NDArray[np.float32], quantised: Quantised, threads: int = 1
) -> tuple[float, float]:
    """|W' - W|^2 and |W|^2 of a matrix W [N, K], a few rows at a time."""

    def piece(rows: slice) -> tuple[float, float]:
        original = weight[rows]
        difference = quantised.rows(rows).dequantise() - original
        return energy(difference), energy(original)

    pieces = pieces_of(len(weight), max(1, _CHUNK_WEIGHTS // weight.shape[1]))
    result = side_by_side(threads, [partial(piece, rows) for rows in pieces])
    return math.fsum(error for error, _ in result), math.fsum(norm for _, norm in result)


def energy(values: npt.NDArray[np.float32]) -> float:
    """Sum of squares, not by BLAS, whose last bit depends on the number of threads."""
    flat = values.ravel()
    return float(np.einsum("i,i->", flat, flat))


def relative(error: float, norm: float) -> float:
    """sqrt(error / norm); 0 for 0 / 0."""
    return float(np.sqrt(error / norm)) if norm > 0 else 0.0
