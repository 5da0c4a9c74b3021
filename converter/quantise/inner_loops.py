"""Compiled inner loops of rounding: a row is an output, and rows do not depend on each other.

Arrays are C-contiguous and of one floating type, float32 or float64, which all arithmetic uses: a
plain 0 or 1 beside a float32 would promote it to float64 and halve the speed. Compiled code lives
as long as the process and is not stored on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Reals = npt.NDArray[np.floating[Any]]


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile an inner loop that other threads may run beside."""
    # Sums may be computed in another order, or they are not vectorised; inputs are finite.
    result: Callable[..., None] = njit(
        nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
    )(function)
    return result


@dataclass(frozen=True, slots=True)
class Loops:
    """The loops that round to levels of one kind; `loops_to` documents their arguments."""

    best_candidate: Callable[..., None]
    refit: Callable[..., None]
    round_group: Callable[..., None]
    descend_group: Callable[..., None]


def loops_to(nearest: Any) -> Loops:
    """Make the loops that round to the levels which a function finds.

    Args:
        nearest: jitable; `nearest(x, zero, levels)` returns the code of the level nearest to
            x = w / scale, and that level, in x's type. `zero` is the group's zero point, a real
            number; `levels` is what the loops are given.
    """

    @compiled
    def best_candidate(
        weight: Any, importance: Any, scales: Any, zeros: Any, levels: Any, best: Any
    ) -> None:
        """Candidate with the least sum of importance * (w - w')^2, the first such, for each row.

        Args:
            weight: [n, g] one group.
            importance: [g].
            scales: [candidates, n].
            zeros: [candidates, n], as real numbers.
            levels: see above.
            best: [n] int64, written.
        """
        number = weight.dtype.type
        for i in range(weight.shape[0]):
            least = np.inf
            for c in range(scales.shape[0]):
                scale, zero = scales[c, i], zeros[c, i]
                inverse, loss = number(1) / scale, number(0)
                for j in range(weight.shape[1]):
                    _, level = nearest(weight[i, j] * inverse, zero, levels)
                    difference = level * scale - weight[i, j]
                    loss += importance[j] * difference * difference
                if loss < least:
                    least, best[i] = loss, c

    @compiled
    def refit(weight: Any, importance: Any, scale: Any, zero: Any, levels: Any, out: Any) -> None:
        """Least-squares scale for the levels that a scale gives: sum h v w / sum h v^2.

        Args:
            weight: [n, g] one group.
            importance: [g].
            scale: [n].
            zero: [n], as real numbers.
            levels: see above.
            out: [n], written; the scale itself where every level is zero.
        """
        number = weight.dtype.type
        for i in range(weight.shape[0]):
            product = square = number(0)
            for j in range(weight.shape[1]):
                _, level = nearest(weight[i, j] / scale[i], zero[i], levels)
                product += importance[j] * level * weight[i, j]
                square += importance[j] * level * level
            out[i] = product / square if square > 0 and product != 0 else scale[i]

    @compiled
    def round_group(
        weight: Any,
        first: Any,
        last: Any,
        factor: Any,
        scale: Any,
        zero: Any,
        levels: Any,
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
            levels: see above.
            codes: [n, b] uint8, written.
            errors: [n, b] (w - w') / factor_jj, written.
        """
        for i in range(weight.shape[0]):
            for j in range(first, last):
                code, level = nearest(weight[i, j] / scale[i], zero[i], levels)
                codes[i, j] = np.uint8(code)
                error = (weight[i, j] - level * scale[i]) / factor[j, j]
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
        levels: Any,
        values: Any,
        change: Any,
    ) -> None:
        """Move each level of inputs first..last to the least loss while all others stay.

        Args:
            gradient: [n, b] dW H of a block, changed.
            first: where the group begins in the block.
            last: its end.
            hessian: [b, b] the block's part.
            scale: [n] of the group.
            levels: see above.
            values: [n, b] levels for a zero point of 0, changed.
            change: [n, b] of the weights that the levels stand for; added to.
        """
        none = gradient.dtype.type(0)
        for i in range(gradient.shape[0]):
            for j in range(first, last):
                wanted = values[i, j] - gradient[i, j] / (hessian[j, j] * scale[i])
                _, level = nearest(wanted, none, levels)
                if level != values[i, j]:
                    step = (level - values[i, j]) * scale[i]
                    values[i, j] = level
                    change[i, j] += step
                    for k in range(gradient.shape[1]):
                        gradient[i, k] += step * hessian[j, k]

    return Loops(best_candidate, refit, round_group, descend_group)


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
