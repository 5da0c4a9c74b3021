"""GPTQ: round one input at a time and compensate the error in those not yet rounded.

For a layer with inputs X (one column a token), H = 2 X X^T; after input q is rounded,

    w_rest -= (w_q - w'_q) / [H^-1]_qq * [H^-1]_q,rest

which the Cholesky factor U of H^-1 = U^T U gives for all inputs at once (and that is the inverse of
the upper R of H = R R^T, so H itself need not be inverted). The order of the inputs
matters. To need no gather at run time, inputs may only be reordered within their group of
`group_size`, and groups as a whole. Scales and zero points are computed from a group's weights when
the group is reached: by then these have absorbed other weights' errors and spread, so a narrower
span that clips a few is often better than their minimum and maximum, above all at 2 bits.

Source: arXiv 2210.17323, sections 3.2-3.4; order within and among groups: arXiv 2505.14638, 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.options import Order
from edgetok.converter.quantise import level_table
from edgetok.converter.quantise.choose_levels import choose_levels
from edgetok.converter.quantise.even_levels import EvenLevels
from edgetok.converter.quantised import Quantised, joined
from edgetok.converter.workers import pieces_of, side_by_side
from edgetok.errors import CheckpointError
from edgetok.formats.layout import TensorFormat

_BLOCK_INPUTS = 128  # as in the paper: updates beyond these wait until the block is done
_STRIPE_INPUTS = 256  # of a Hessian
_SMALL_INPUTS = 128
_MOST_DAMPING = 10.0


class Hessian:
    """2 X X^T / tokens of one layer's inputs, gathered a batch at a time in float32.

    Attributes:
        tokens: number of inputs seen.
    """

    def __init__(self, inputs: int, threads: int = 1) -> None:
        self._sum = torch.zeros(inputs, inputs)
        self._threads = threads
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, K]."""

        def stripe(rows: slice) -> None:
            end = rows.stop
            self._sum[rows, :end].addmm_(x[:, rows].T, x[:, :end], alpha=2.0)

        # The lower triangle alone, in stripes: it is symmetric. The longest stripe comes first.
        stripes = reversed(pieces_of(x.shape[1], _STRIPE_INPUTS))
        side_by_side(self._threads, [partial(stripe, rows) for rows in stripes])
        self.tokens += len(x)

    def mean(self) -> Tensor:
        """Return the mean [K, K] float32; the sum itself is freed."""
        total = self._sum.div_(max(self.tokens, 1))
        self._sum = torch.empty(0)
        for rows in pieces_of(len(total), _STRIPE_INPUTS):
            total[: rows.start, rows] = total[rows, : rows.start].T
        return total


@dataclass(frozen=True, slots=True)
class Inverse:
    """The factor of a Hessian's inverse that GPTQ needs; layers with the same input share one.

    Attributes:
        groups: inputs of each group in the order in which they are rounded, groups likewise.
        factor: [K, K] upper Cholesky factor of the inverse, rows and columns in that order.
        damping: share of the mean diagonal that was added.
    """

    groups: tuple[Tensor, ...]
    factor: Tensor
    damping: float

    def folded(self, scales: Tensor) -> Inverse:
        """Return the factor for weights times, and inputs divided by, `scales` [K]."""
        return Inverse(self.groups, self.factor * scales[torch.cat(self.groups)], self.damping)


def order_inputs(diagonal: Tensor, group_size: int, order: Order) -> tuple[Tensor, ...]:
    """Inputs of each group, in the order in which they are rounded.

    Args:
        diagonal: [K] of the Hessian.
        group_size: inputs that share a scale.
        order: "group_aware": falling by diagonal within a group, groups falling by their mean;
            "plain": as they stand.
    """
    K = len(diagonal)
    groups = tuple(
        torch.arange(first, min(first + group_size, K)) for first in range(0, K, group_size)
    )
    if order == "plain":
        return groups
    inside = [group[diagonal[group].argsort(descending=True, stable=True)] for group in groups]
    mass = torch.stack([diagonal[group].mean() for group in groups])
    return tuple(inside[int(i)] for i in mass.argsort(descending=True, stable=True))


def invert(hessian: Tensor, group_size: int, *, damping: float, order: Order) -> Inverse:
    """Order the inputs and factor the inverse of the damped Hessian.

    Inputs that calibration never activated count as much as others do on average: they are rounded
    to nearest like them, and nothing else is changed for them.

    Args:
        hessian: [K, K] float32 or float64; overwritten.
        group_size: inputs that share a scale.
        damping: share of the mean diagonal that is added; ten times as much, up to ten, where
            rounding leaves the matrix indefinite nonetheless.
        order: see `order_inputs`.

    Raises:
        CheckpointError: the Hessian holds NaN or Inf.
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise CheckpointError(
            "calibration: activations are NaN or Inf; the checkpoint is damaged or its weights "
            "overflow float32"
        )
    groups = order_inputs(diagonal, group_size, order)
    live = diagonal[diagonal > 0]
    diagonal[diagonal == 0] = live.mean() if len(live) else 1.0
    backwards = torch.cat(groups).flip(0)
    hessian = hessian[backwards][:, backwards]
    mean = hessian.diagonal().mean()
    added = 0.0
    while True:
        hessian.diagonal().add_((damping - added) * mean)
        added = damping
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            _invert_lower(lower)
            return Inverse(groups, lower.flip(0, 1), damping)
        if damping >= _MOST_DAMPING:
            raise CheckpointError("calibration: the Hessian cannot be inverted; use --method awq")
        damping *= 10


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix [K, K] in place, by halves."""
    half = len(lower) // 2
    if half < _SMALL_INPUTS:
        one = torch.eye(len(lower), dtype=lower.dtype)
        lower.copy_(torch.linalg.solve_triangular(lower, one, upper=False))
        return
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(first)
    _invert_lower(last)
    below.copy_(-(last @ (below @ first)))


def invert_diagonal(hessian: Tensor, group_size: int, *, damping: float) -> Inverse:
    """An `Inverse` of the diagonal alone: weights are then rounded to nearest, inputs weighted.

    Args:
        hessian: [K, K] float32 or float64.
        group_size: inputs that share a scale.
        damping: share of the mean diagonal that is added.
    """
    diagonal = hessian.diagonal()
    damped = diagonal + damping * diagonal.mean() + torch.finfo(diagonal.dtype).tiny
    return Inverse(order_inputs(diagonal, group_size, "plain"), torch.diag(damped.rsqrt()), damping)


def quantise(
    weight: Tensor,
    inverse: Inverse,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    table: npt.NDArray[np.int8] | None = None,
    thorough: bool = False,
) -> Quantised:
    """Round a layer's weights by GPTQ. Its rows do not depend on each other.

    Args:
        weight: [N, K], of the dtype of `inverse.factor`, in which all is computed.
        inverse: inverse Hessian of the layer's inputs.
        bits: 2 to 8.
        group_size: as `inverse` was made with.
        symmetric: no zero points.
        table: [16] rising levels, which take the place of zero points.
        thorough: try more spans and zero points for each group, and refit scales.
    """
    N, K = weight.shape
    permutation = torch.cat(inverse.groups)
    w = weight[:, permutation]
    codes = np.empty((N, K), np.uint8)
    scales = np.empty((N, len(inverse.groups)), np.float16)
    zeros = np.empty((N, len(inverse.groups)), np.uint8)
    levels = choose_levels(bits, w.numpy().dtype, symmetric=symmetric, table=table)
    done = 0
    for block in _blocks_of(inverse.groups):
        first, end = done, done + sum(len(group) for group in block)
        values = w[:, first:end].contiguous().numpy()
        factor = np.ascontiguousarray(inverse.factor[first:end, first:end].numpy())
        errors = np.empty_like(values)
        result = np.empty(values.shape, np.uint8)
        for group in block:
            g = int(group[0]) // group_size
            inside = (done - first, done - first + len(group))
            part = np.ascontiguousarray(values[:, slice(*inside)])
            importance = factor.diagonal()[slice(*inside)] ** -2
            scale, zero = levels.search(part, importance, thorough=thorough)
            scales[:, g], zeros[:, g] = scale, zero
            levels.round_group(values, inside, factor, scale, zero, result, errors)
            done += len(group)
        codes[:, permutation[first:end].numpy()] = result
        w[:, end:].addmm_(torch.from_numpy(errors), inverse.factor[first:end, end:], alpha=-1)
    without = symmetric or table is not None
    return Quantised(codes, scales, None if without else zeros, bits, group_size, table=table)


def quantise_searched(
    weight: npt.NDArray[np.float32], form: TensorFormat, *, threads: int = 1
) -> Quantised:
    """Round each weight to nearest, spans and zero points searched, all inputs alike.

    Args:
        weight: [N, K] float32.
        form: bits, group size, and whether there are zero points or a table.
        threads: number of ranges of rows that are rounded at once.
    """
    rows = pieces_of(len(weight))
    return joined(
        side_by_side(threads, [partial(_searched, weight[piece], form) for piece in rows])
    )


def _searched(weight: npt.NDArray[np.float32], form: TensorFormat) -> Quantised:
    """Some rows of `quantise_searched`."""
    size, bits, symmetric = form.group_size, form.bits, not form.zeros
    if form.table:
        return level_table.quantise(weight, size, thorough=True)
    levels = EvenLevels(bits, np.float32, symmetric=symmetric)
    codes, scales, zeros = levels.round_alike(weight, size, thorough=True)
    return Quantised(codes, scales, None if symmetric else zeros, bits, size)


def _blocks_of(groups: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """Groups put together up to `_BLOCK_INPUTS` inputs."""
    blocks: list[list[Tensor]] = [[]]
    for group in groups:
        if blocks[-1] and sum(len(g) for g in blocks[-1]) + len(group) > _BLOCK_INPUTS:
            blocks.append([])
        blocks[-1].append(group)
    return blocks
