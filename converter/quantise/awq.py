"""AWQ: scale important inputs up before rounding, and undo it in the operation before.

    y = W x = (W diag(s)) (diag(1 / s) x),  s = mean|x|^alpha, normalised

Weights of salient inputs then lose less to rounding. diag(1 / s) is folded into the operation that
computes x: a norm's weight, or the rows of the linear layer before. alpha is searched; 0 (no
change) is a candidate. Then each group's span is narrowed where that lowers the output's error.

Source: arXiv 2306.00978, section 3.2; clipping: the authors' code, `auto_clip`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.round_to_nearest import grid
from edgetok.converter.quantised import Quantised, fits_float16_scales
from edgetok.converter.workers import pieces_of, side_by_side

ALPHAS = tuple(i / 20 for i in range(20))
_SPANS = tuple(1 - 0.05 * i for i in range(11))
SAMPLE_TOKENS = 1024

Floats = npt.NDArray[np.float32]

_CHUNK_OUTPUTS = 256
_MOST_SCALE = 1e4


class Sample:
    """A sample of a layer's inputs, evenly spread over all of them."""

    def __init__(self, expected_tokens: int, wanted_tokens: int) -> None:
        self._every = max(1, expected_tokens // wanted_tokens)
        self._seen = 0
        self._kept: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, K]."""
        self._kept.append(x[(-self._seen) % self._every :: self._every].clone())
        self._seen += len(x)

    def inputs(self) -> Tensor:
        """[n, K]."""
        return torch.cat(self._kept)


class Magnitude:
    """Mean of |x| of one layer's inputs."""

    def __init__(self, inputs: int) -> None:
        self._sum = torch.zeros(inputs, dtype=torch.float64)
        self._tokens = 0

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, K]."""
        self._sum += x.abs().sum(0, dtype=torch.float64)
        self._tokens += len(x)

    def mean(self) -> Tensor:
        """[K] float32."""
        return (self._sum / max(self._tokens, 1)).to(torch.float32)


class GroupProducts:
    """Sums of x x^T within each group of one layer's inputs."""

    def __init__(self, inputs: int, group_size: int) -> None:
        self._group_size = group_size
        self._sum = torch.zeros(-(-inputs // group_size), group_size, group_size)

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, K]."""
        grouped = _grouped(x, self._group_size)
        self._sum.baddbmm_(grouped.transpose(1, 2), grouped)

    def total(self) -> Tensor:
        """[G, group_size, group_size] float32."""
        return self._sum


@dataclass(frozen=True, slots=True)
class ScaleChoice:
    """The result of a search.

    Attributes:
        scales: [K] float32; all one where nothing is changed.
        alpha: the exponent.
        loss: mean squared error of the outputs on the sample, with these scales.
        identity_loss: the same without scales.
    """

    scales: Tensor
    alpha: float
    loss: float
    identity_loss: float


def candidate_scales(mean_magnitude: Tensor, alpha: float) -> Tensor:
    """mean|x|^alpha, divided by the root of its greatest times its least: [K] float32."""
    if alpha == 0:
        return torch.ones_like(mean_magnitude)
    # An input that was never active has no magnitude to go by; it is treated as the least active.
    live = mean_magnitude[mean_magnitude > 0]
    floor = live.min() if len(live) else torch.ones(())
    scales = torch.maximum(mean_magnitude, floor).pow(alpha)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return scales.clamp(1 / _MOST_SCALE, _MOST_SCALE)


def search_scales(
    weights: Sequence[Tensor],
    sample: Tensor,
    mean_magnitude: Tensor,
    rounders: Sequence[Callable[[Tensor], Tensor]],
    *,
    share: Callable[[Tensor], Tensor] | None = None,
    alphas: Sequence[float] = ALPHAS,
    threads: int = 1,
) -> ScaleChoice:
    """Choose alpha by the error of the outputs of all layers that take the same input.

    Args:
        weights: [N_i, K] of each layer.
        sample: [n, K] inputs.
        mean_magnitude: [K] mean of |x|.
        rounders: for each layer a function that rounds weights [N_i, K].
        share: makes magnitudes [K] equal where inputs must share a scale.
        alphas: to be tried beside 0, which leaves all as it is.
        threads: how many are tried at once.
    """
    magnitude = share(mean_magnitude) if share else mean_magnitude
    tried = [0.0, *(alpha for alpha in alphas if alpha)]
    scales = [candidate_scales(magnitude, alpha) for alpha in tried]
    works = [partial(output_loss, weights, sample, each, rounders) for each in scales]
    losses = side_by_side(threads, works)
    best = min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))
    return ScaleChoice(scales[best], tried[best], losses[best], losses[0])


def output_loss(
    weights: Sequence[Tensor],
    sample: Tensor,
    scales: Tensor,
    rounders: Sequence[Callable[[Tensor], Tensor]],
) -> float:
    """Mean over tokens of sum_i |(round(W_i diag(s)) diag(1 / s) - W_i) x|^2.

    Args:
        weights: W_i, each [N_i, K].
        sample: x, [tokens, K].
        scales: s, [K].
        rounders: a function for each W_i.
    """
    total = 0.0
    for weight, round_weight in zip(weights, rounders, strict=True):
        difference = round_weight(weight * scales).div_(scales).sub_(weight)
        total += float((sample @ difference.T).square_().sum(dtype=torch.float64))
    return total / len(sample)


def rounder(bits: int, group_size: int, symmetric: bool) -> Callable[[Tensor], Tensor]:
    """Rounding to nearest as a function of weights alone; beyond float16's scales it gives Inf."""

    def round_weight(weight: Tensor) -> Tensor:
        if not fits_float16_scales(float(weight.abs().max()), bits):
            return torch.full_like(weight, torch.inf)
        values = np.ascontiguousarray(weight.numpy())
        result = rtn.quantise(values, bits, group_size, symmetric=symmetric)
        return torch.from_numpy(result.dequantise())

    return round_weight


def share_across_queries(
    magnitude: Tensor, num_heads: int, num_kv_heads: int, head_dim: int
) -> Tensor:
    """Mean over the query heads that read one value head: [H * D] -> [H * D].

    Inputs of o_proj that come from the same row of v_proj then have the same scale, so that it can
    be undone there.
    """
    grouped = magnitude.reshape(num_kv_heads, num_heads // num_kv_heads, head_dim)
    return grouped.mean(1, keepdim=True).expand_as(grouped).reshape(-1)


def rows_of_values(scales: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    """Scales of o_proj's inputs as scales of v_proj's rows: [H * D] -> [KH * D]."""
    return scales.reshape(num_kv_heads, num_heads // num_kv_heads, head_dim)[:, 0].reshape(-1)


def quantise_clipped(
    weight: Tensor,
    products: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = False,
    threads: int = 1,
) -> Quantised:
    """Round to nearest, with the span of each group that errs least in the group's outputs.

    Args:
        weight: [N, K] float32.
        products: [G, group_size, group_size] sums of x x^T within each group: the error of a group
            is dw^T (x x^T) dw, as the paper's code computes from a sample of tokens.
        bits: 2 to 8.
        group_size: inputs that share a scale.
        symmetric: no zero points.
        threads: number of ranges of outputs rounded at once.
    """
    N, K = weight.shape
    G = -(-K // group_size)
    codes = np.empty((N, K), np.uint8)
    scales = np.empty((N, G), np.float16)
    zeros = np.empty((N, G), np.uint8)
    inputs = products.numpy()

    def piece(rows: slice) -> None:
        grouped = _grouped(weight[rows], group_size).numpy()
        best_codes, best_scales, best_zeros = _clip_groups(grouped, inputs, bits, symmetric)
        codes[rows] = best_codes.transpose(1, 0, 2).reshape(-1, G * group_size)[:, :K]
        scales[rows], zeros[rows] = best_scales.T, best_zeros.T

    side_by_side(threads, [partial(piece, rows) for rows in pieces_of(N, _CHUNK_OUTPUTS)])
    return Quantised(codes, scales, None if symmetric else zeros, bits, group_size)


def _clip_groups(
    w: Floats, products: Floats, bits: int, symmetric: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """Codes [G, n, g], scales [G, n] and zero points [G, n] for weights [G, n, g]."""
    low, high = w.min(2), w.max(2)
    best = np.full(low.shape, np.inf, np.float32)
    codes = np.zeros(w.shape, np.uint8)
    scales, zeros = grid(low, high, bits, symmetric=symmetric)
    for span in _SPANS:
        share = np.float32(span)
        scale, zero = grid(low * share, high * share, bits, symmetric=symmetric)
        wide, offset = scale.astype(np.float32)[:, :, None], zero.astype(np.float32)[:, :, None]
        levels = w / wide
        np.rint(levels, out=levels)
        levels += offset
        np.clip(levels, 0, (1 << bits) - 1, out=levels)
        difference = (levels - offset) * wide
        difference -= w
        loss = np.einsum("gnk,gnk->gn", difference @ products, difference)
        better = loss < best
        codes[better] = levels[better]
        scales[better], zeros[better], best[better] = scale[better], zero[better], loss[better]
    return codes, scales, zeros


def _grouped(values: Tensor, group_size: int) -> Tensor:
    """[n, K] -> [G, n, group_size], the last group padded with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % group_size))
    return padded.reshape(len(values), -1, group_size).transpose(0, 1).contiguous()
