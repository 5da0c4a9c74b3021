"""Coordinate descent over rounded weights: move each code to the least error of the layer's output.

    L = tr(dW H dW^T),  dW = (q - z) s - W,  R = dW H

With all other weights fixed, L is least at w'_j - R_j / H_jj; the nearest level is taken. Then
each group's scale has a closed form,

    s <- s - v R_g^T / (v H_gg v^T),  v = q - z,

rounded to its stored type and kept only if it lowers L. So no step raises L.

Source: arXiv 2309.01885 (QuantEase), section 3; scales: arXiv 2406.17542 (CDQuant), section 3.3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.quantise import inner_loops as rounding
from edgetok.converter.quantise.choose_levels import choose_levels
from edgetok.converter.quantise.inner_loops import Reals
from edgetok.converter.quantise.levels import Levels
from edgetok.converter.quantised import Quantised, float16_scales

_BLOCK_INPUTS = 128  # the gradient of inputs beyond these waits until the block is done


def descend(weight: Tensor, hessian: Tensor, start: Quantised, *, sweeps: int) -> Quantised:
    """Lower tr(dW H dW^T) by changing codes and scales; zero points stay.

    Rows do not depend on each other.

    Args:
        weight: [N, K], of the dtype of `hessian`, in which all is computed.
        hessian: [K, K] damped, so that its diagonal is above zero.
        start: the rounded weights to begin with.
        sweeps: number of passes over all codes.
    """
    g, K = start.group_size, start.codes.shape[1]
    dtype = weight.numpy().dtype
    levels = choose_levels(start.bits, dtype, symmetric=start.zeros is None, table=start.table)
    values = levels.values(start.codes)
    scales = start.scales.astype(np.float16)
    if start.table is not None:
        zeros = np.zeros(scales.shape, dtype)  # what moves are levels, which need no zero points
    elif start.zeros is None:
        zeros = np.full(scales.shape, 1 << (start.bits - 1), dtype)
    else:
        zeros = start.zeros.astype(dtype)
    width = max(_BLOCK_INPUTS // g, 1) * g
    gradient = torch.from_numpy(start.dequantise()).to(weight.dtype).sub_(weight) @ hessian
    for sweep in range(sweeps):
        for first in range(0, K, width):
            inputs = slice(first, min(first + width, K))
            block = _Block(
                np.array(gradient[:, inputs].numpy(), order="C"),  # changed: a copy
                np.ascontiguousarray(hessian[inputs, inputs].numpy()),
                np.ascontiguousarray(values[:, inputs]),
                levels,
            )
            for begin in range(0, inputs.stop - first, g):
                group = (first + begin) // g
                end = min(begin + g, inputs.stop - first)
                block.move(begin, end, scales[:, group])
                scales[:, group] = block.refit(
                    begin, end, scales[:, group], np.ascontiguousarray(zeros[:, group])
                )
            values[:, inputs] = block.values
            # Nothing looks at what lies behind in the last sweep.
            behind = inputs.stop if sweep == sweeps - 1 else 0
            gradient[:, behind:].addmm_(torch.from_numpy(block.change), hessian[inputs, behind:])
    return replace(start, codes=levels.codes(values), scales=scales)


class _Block:
    """A block of a layer's inputs: gradient, values of codes, and the change of the weights."""

    def __init__(self, gradient: Reals, hessian: Reals, values: Reals, levels: Levels) -> None:
        self.gradient, self.hessian, self.values, self.levels = gradient, hessian, values, levels
        self.change = np.zeros_like(gradient)

    def move(self, begin: int, end: int, scale: npt.NDArray[np.float16]) -> None:
        """Move the values of inputs begin..end to the least loss."""
        self.levels.descend_group(
            self.gradient, (begin, end), self.hessian, scale, self.values, self.change
        )

    def refit(
        self, begin: int, end: int, scale: npt.NDArray[np.float16], zero: Reals
    ) -> npt.NDArray[np.float16]:
        """Return the group's scale of least loss, or the old one."""
        slope, curve = np.empty_like(zero), np.empty_like(zero)
        rounding.scale_slopes(
            self.gradient, begin, end, self.hessian, zero, self.values, slope, curve
        )
        old = scale.astype(self.values.dtype)
        wanted = old - np.divide(slope, curve, out=np.zeros_like(slope), where=curve > 0)
        new = float16_scales(np.where(wanted * old > 0, wanted, old).astype(np.float32))
        step = new.astype(old.dtype) - old
        step[2 * step * slope + step * step * curve >= 0] = 0
        rounding.change_scale(
            self.gradient, begin, end, self.hessian, step, zero, self.values, self.change
        )
        return np.where(step != 0, new, scale)
