"""Compiled inner loops of rounding: a row is an output, and rows do not depend on each other.

Arrays are C-contiguous and of one floating type, float32 or float64, which all arithmetic uses: a
plain 0 or 1 beside a float32 would promote it to float64 and halve the speed. Compiled code lives
as long as the process and is not stored on the disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Reals = npt.NDArray[np.floating[Any]]

CHUNK_OUTPUTS = 256  # a block of 128 inputs is then 128 KB of float32, which an L2 cache holds


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile an inner loop that other threads may run beside."""
    # Sums may be computed in another order, or they are not vectorised; inputs are finite.
    result: Callable[..., None] = njit(
        nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
    )(function)
    return result


@compiled
def best_candidate(
    weight: Any, importance: Any, scales: Any, zeros: Any, top: Any, best: Any
) -> None:
    """Candidate with the least sum of importance * (w - w')^2 for each row; the first of equals.

    Args:
        weight: [n, g] one group.
        importance: [g].
        scales: [candidates, n].
        zeros: [candidates, n], as real numbers.
        top: 2^bits - 1, as a real number.
        best: [n] int64, written.
    """
    bottom, one = top - top, top / top
    for i in range(weight.shape[0]):
        least = np.inf
        for c in range(scales.shape[0]):
            scale, zero = scales[c, i], zeros[c, i]
            inverse = one / scale
            loss = bottom
            for j in range(weight.shape[1]):
                code = min(max(np.rint(weight[i, j] * inverse) + zero, bottom), top)
                difference = (code - zero) * scale - weight[i, j]
                loss += importance[j] * difference * difference
            if loss < least:
                least, best[i] = loss, c


@compiled
def refit(weight: Any, importance: Any, scale: Any, zero: Any, top: Any, out: Any) -> None:
    """Least-squares scale for the codes that a scale gives: sum h v w / sum h v^2, v = q - zero.

    Args:
        weight: [n, g] one group.
        importance: [g].
        scale: [n].
        zero: [n], as real numbers.
        top: 2^bits - 1, as a real number.
        out: [n], written; the scale itself where every code is the zero point.
    """
    bottom = top - top
    for i in range(weight.shape[0]):
        product = square = bottom
        for j in range(weight.shape[1]):
            code = min(max(np.rint(weight[i, j] / scale[i]) + zero[i], bottom), top)
            value = code - zero[i]
            product += importance[j] * value * weight[i, j]
            square += importance[j] * value * value
        out[i] = product / square if square > 0 and product > 0 else scale[i]


@compiled
def round_group(
    weight: Any,
    first: Any,
    last: Any,
    factor: Any,
    scale: Any,
    zero: Any,
    top: Any,
    codes: Any,
    errors: Any,
) -> None:
    """Round inputs first..last of a block; the block's later inputs take over their errors.

    Args:
        weight: [n, b] one block, changed.
        first: where the group begins in the block.
        last: its end.
        factor: [b, b] its part of GPTQ's upper Cholesky factor.
        scale: [n] of the group.
        zero: [n] of the group, as real numbers.
        top: 2^bits - 1, as a real number.
        codes: [n, b] uint8, written.
        errors: [n, b] (w - w') / factor_jj, written.
    """
    bottom = top - top
    for i in range(weight.shape[0]):
        for j in range(first, last):
            code = min(max(np.rint(weight[i, j] / scale[i]) + zero[i], bottom), top)
            codes[i, j] = np.uint8(code)
            error = (weight[i, j] - (code - zero[i]) * scale[i]) / factor[j, j]
            errors[i, j] = error
            for k in range(j + 1, weight.shape[1]):
                weight[i, k] -= error * factor[j, k]


@compiled
def descend_group(
    gradient: Any,
    first: Any,
    last: Any,
    hessian: Any,
    scale: Any,
    top: Any,
    codes: Any,
    change: Any,
) -> None:
    """Move each code of inputs first..last to where the loss is least while all others stay.

    Args:
        gradient: [n, b] dW H of a block, changed.
        first: where the group begins in the block.
        last: its end.
        hessian: [b, b] the block's part.
        scale: [n] of the group.
        top: 2^bits - 1, as a real number.
        codes: [n, b], as real numbers, changed.
        change: [n, b] of the weights that the codes stand for; added to.
    """
    bottom = top - top
    for i in range(gradient.shape[0]):
        for j in range(first, last):
            code = np.rint(codes[i, j] - gradient[i, j] / (hessian[j, j] * scale[i]))
            code = min(max(code, bottom), top)
            if code != codes[i, j]:
                step = (code - codes[i, j]) * scale[i]
                codes[i, j] = code
                change[i, j] += step
                for k in range(gradient.shape[1]):
                    gradient[i, k] += step * hessian[j, k]


@compiled
def scale_slopes(
    gradient: Any,
    first: Any,
    last: Any,
    hessian: Any,
    zero: Any,
    codes: Any,
    slopes: Any,
    curves: Any,
) -> None:
    """Return the loss's slopes in the scale of inputs first..last: v R^T, v H v^T; v = q - zero.

    Args:
        gradient: [n, b] dW H of a block.
        first: where the group begins in the block.
        last: its end.
        hessian: [b, b] the block's part.
        zero: [n] of the group, as real numbers.
        codes: [n, b], as real numbers.
        slopes: [n], written.
        curves: [n], written.
    """
    for i in range(gradient.shape[0]):
        slope = curve = zero[i] - zero[i]
        for j in range(first, last):
            value = codes[i, j] - zero[i]
            slope += value * gradient[i, j]
            product = zero[i] - zero[i]
            for k in range(first, last):
                product += hessian[j, k] * (codes[i, k] - zero[i])
            curve += value * product
        slopes[i], curves[i] = slope, curve


@compiled
def change_scale(
    gradient: Any,
    first: Any,
    last: Any,
    hessian: Any,
    step: Any,
    zero: Any,
    codes: Any,
    change: Any,
) -> None:
    """Follow a change of the scale of inputs first..last.

    Args:
        gradient: [n, b] dW H of a block, changed.
        first: where the group begins in the block.
        last: its end.
        hessian: [b, b] the block's part.
        step: [n] by how much the scale changes.
        zero: [n] of the group, as real numbers.
        codes: [n, b], as real numbers.
        change: [n, b] of the weights; added to.
    """
    for i in range(gradient.shape[0]):
        if step[i] == 0:
            continue
        for j in range(first, last):
            moved = (codes[i, j] - zero[i]) * step[i]
            change[i, j] += moved
            for k in range(gradient.shape[1]):
                gradient[i, k] += moved * hessian[j, k]


def in_chunks(rows: int, threads: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices of rows, on several threads at once.

    Args:
        rows: their number.
        threads: how many work at once; one calls without a thread of its own.
        work: the work on a slice; the compiled functions above let other threads run.
    """
    chunks = [slice(first, first + CHUNK_OUTPUTS) for first in range(0, rows, CHUNK_OUTPUTS)]
    if threads == 1 or len(chunks) == 1:
        for chunk in chunks:
            work(chunk)
        return
    list(_pool(threads).map(work, chunks))


_pool = functools.cache(ThreadPoolExecutor)  # a new one for each group would take seconds in all
