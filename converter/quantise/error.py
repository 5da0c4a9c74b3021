"""Errors of quantised matrices."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised

_CHUNK_WEIGHTS = 1 << 18


def squared_errors(
    weight: npt.NDArray[np.float32], quantised: Quantised, threads: int = 1
) -> tuple[float, float]:
    """|W' - W|^2 and |W|^2 of a matrix W [N, K], a few rows at a time."""
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])

    def chunk(first: int) -> tuple[float, float]:
        rows = slice(first, first + step)
        piece = quantised.rows(rows)
        original = weight[rows].ravel()
        difference = piece.dequantise().ravel() - original
        return float(np.dot(difference, difference)), float(np.dot(original, original))

    with ThreadPoolExecutor(threads) as pool:
        result = list(pool.map(chunk, range(0, len(weight), step)))
    return math.fsum(error for error, _ in result), math.fsum(norm for _, norm in result)


def relative(error: float, norm: float) -> float:
    """sqrt(error / norm); 0 for 0 / 0."""
    return float(np.sqrt(error / norm)) if norm > 0 else 0.0
