"""GPTQ: round one input at a time and let those not yet rounded make up for the error.

For a layer with inputs X (one column a token), H = 2 X X^T; after input q is rounded,

    w_rest -= (w_q - w'_q) / [H^-1]_qq * [H^-1]_q,rest

which the Cholesky factor U of H^-1 = U^T U gives for all inputs at once. The order of the inputs
matters; to need no gather when the model runs, inputs may only change places within their group of
`group_size` and groups as a whole. Scales and zero points come from the group's weights as they are
when its turn comes: by then these have taken over other weights' errors and spread, so a narrower
span that clips a few is often better than their least and greatest, above all at 2 bits.

Source: arXiv 2210.17323, sections 3.2-3.4, and the search for a span in the authors' code (`mse`);
order within and among groups: arXiv 2505.14638, 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.options import Order
from edgetok.converter.rtn import Quantised, grid
from edgetok.errors import CheckpointError

Reals = npt.NDArray[np.floating[Any]]

_CHUNK_OUTPUTS = 512  # a block of 128 inputs is then 256 KB of float32, which an L2 cache holds
_BLOCK_INPUTS = 128  # as in the paper: updates beyond these wait until the block is done
_MOST_DAMPING = 10.0
_SPANS = tuple(1 - 0.05 * i for i in range(11))  # shares of the span from least to greatest


class Hessian:
    """2 X X^T / tokens of one layer's inputs, gathered a batch at a time in float32.

    Attributes:
        tokens: how many inputs were seen.
    """

    def __init__(self, inputs: int) -> None:
        self._sum = torch.zeros(inputs, inputs)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """See inputs [tokens, K]."""
        self._sum.addmm_(x.T, x, alpha=2.0)
        self.tokens += len(x)

    def mean(self) -> Tensor:
        """[K, K] float32; the sum itself is given up."""
        total = self._sum.div_(max(self.tokens, 1))
        self._sum = torch.empty(0)
        return total


@dataclass(frozen=True, slots=True)
class Inverse:
    """What GPTQ needs of a Hessian; layers with the same input share one.

    Attributes:
        groups: inputs of each group in the order in which they are rounded, groups likewise.
        factor: [K, K] upper Cholesky factor of the inverse, rows and columns in that order.
        damping: share of the mean diagonal that was added.
    """

    groups: tuple[Tensor, ...]
    factor: Tensor
    damping: float


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
    permutation = torch.cat(groups)
    hessian = hessian[permutation][:, permutation]
    mean = hessian.diagonal().mean()
    added = 0.0
    while True:
        hessian.diagonal().add_((damping - added) * mean)
        added = damping
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return Inverse(groups, factor, damping)
        if damping >= _MOST_DAMPING:
            raise CheckpointError("calibration: the Hessian cannot be inverted; use --method awq")
        damping *= 10


def quantise(
    weight: Tensor,
    inverse: Inverse,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    threads: int = 1,
) -> Quantised:
    """Round a layer's weights by GPTQ.

    Args:
        weight: [N, K], of the dtype of `inverse.factor`, in which all is computed.
        inverse: of the layer's inputs.
        bits: 2 to 8.
        group_size: as `inverse` was made with.
        symmetric: no zero points.
        threads: how many chunks of outputs, which do not depend on each other, are rounded at once.
    """
    N, K = weight.shape
    codes = np.empty((N, K), np.uint8)
    scales = np.empty((N, len(inverse.groups)), np.float16)
    zeros = np.empty((N, len(inverse.groups)), np.uint8)
    values, factor = weight.numpy(), inverse.factor.numpy()
    groups = [group.numpy() for group in inverse.groups]

    def chunk(first: int) -> None:
        rows = slice(first, first + _CHUNK_OUTPUTS)
        codes[rows], scales[rows], zeros[rows] = _quantise_rows(
            values[rows], factor, groups, bits, group_size, symmetric
        )

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(chunk, range(0, N, _CHUNK_OUTPUTS)))
    return Quantised(codes, scales, None if symmetric else zeros, bits, group_size)


def search_grid(
    group: Reals,
    importance: Reals,
    bits: int,
    *,
    symmetric: bool,
    spans: Sequence[float] = _SPANS,
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """Scale and zero point with the least sum of importance * (w - w')^2 when rounded to nearest.

    Args:
        group: [g, N] weights of one group.
        importance: [g] of each input; in GPTQ the loss of an error in it is 1 / factor_jj^2.
        bits: 2 to 8.
        symmetric: no zero points.
        spans: shares of the span from least to greatest weight that are tried.

    Returns:
        [N] float16 scales and [N] uint8 zero points.
    """
    low, high = group.min(0).astype(np.float32), group.max(0).astype(np.float32)
    best = np.full(group.shape[1], np.inf)
    scales, zeros = grid(low, high, bits, symmetric=symmetric)
    for span in spans:
        share = np.float32(span)
        scale, zero = grid(low * share, high * share, bits, symmetric=symmetric)
        _, rounded = _round(group, scale.astype(group.dtype), zero.astype(group.dtype), bits)
        rounded -= group
        np.square(rounded, out=rounded)
        loss = importance @ rounded
        better = loss < best
        scales[better], zeros[better], best[better] = scale[better], zero[better], loss[better]
    return scales, zeros


def _quantise_rows(
    weight: Reals,
    factor: Reals,
    groups: list[npt.NDArray[np.int64]],
    bits: int,
    group_size: int,
    symmetric: bool,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    N, K = weight.shape
    permutation = np.concatenate(groups)
    # One input a row, so that a step works on contiguous memory.
    w = np.ascontiguousarray(weight.T[permutation])
    codes = np.empty((K, N), np.uint8)
    scales = np.empty((N, len(groups)), np.float16)
    zeros = np.empty((N, len(groups)), np.uint8)
    errors = np.empty((max(_BLOCK_INPUTS, group_size), N), w.dtype)
    done = 0
    for block in _blocks_of(groups):
        first, end = done, done + sum(len(group) for group in block)
        for group in block:
            g = int(group[0]) // group_size
            last = done + len(group)
            loss = factor.diagonal()[done:last] ** -2
            scales[:, g], zeros[:, g] = search_grid(w[done:last], loss, bits, symmetric=symmetric)
            scale, zero = scales[:, g].astype(w.dtype), zeros[:, g].astype(w.dtype)
            for j in range(done, last):
                codes[j], rounded = _round(w[j], scale, zero, bits)
                error = (w[j] - rounded) / factor[j, j]
                errors[j - first] = error
                w[j + 1 : end] -= factor[j, j + 1 : end, None] * error
            done = last
        w[end:] -= factor[first:end, end:].T @ errors[: end - first]
    unpermuted = np.empty_like(codes)
    unpermuted[permutation] = codes
    return np.ascontiguousarray(unpermuted.T), scales, zeros


def _round(values: Reals, scale: Reals, zero: Reals, bits: int) -> tuple[Reals, Reals]:
    """Codes of the nearest levels, and what they stand for."""
    codes = values / scale
    np.rint(codes, out=codes)
    codes += zero
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes, (codes - zero) * scale


def _blocks_of(groups: list[npt.NDArray[np.int64]]) -> list[list[npt.NDArray[np.int64]]]:
    """Groups put together up to `_BLOCK_INPUTS` inputs."""
    blocks: list[list[npt.NDArray[np.int64]]] = [[]]
    for group in groups:
        if blocks[-1] and sum(len(g) for g in blocks[-1]) + len(group) > _BLOCK_INPUTS:
            blocks.append([])
        blocks[-1].append(group)
    return blocks
