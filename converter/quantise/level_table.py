"""Round to 16 levels that lie closer near zero: w ~ table[q] * scale, for matrices with a table.

Weights are distributed about like a normal variable, so levels closer near zero lose less than as
many even ones, and need no zero points: 4.5 bits a weight in groups of 32. A scale may be negative,
because the table is not symmetric.

Source: levels: ggml, `ggml-common.h` (IQ4_NL); least squares for the scale of given codes as in
`gptq.search_grid`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from edgetok.converter.quantise.inner_loops import Reals, compiled, in_chunks
from edgetok.converter.quantised import Quantised

LEVELS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int8
)
_SPANS = tuple(1.1 - 0.08 * i for i in range(6))  # shares of the weight of greatest magnitude
_THOROUGH_SPANS = tuple(1.15 - 0.04 * i for i in range(14))
_REFITS = 2


@register_jitable  # type: ignore[untyped-decorator]
def _nearest(x: Any, middles: Any) -> Any:
    """Index of the level nearest to x; `middles` [15] lie between the levels."""
    i = 0
    if x > middles[7]:
        i = 8
    if x > middles[i + 3]:
        i += 4
    if x > middles[i + 1]:
        i += 2
    if x > middles[i]:
        i += 1
    return i


@compiled
def _best_scale(
    weight: Any, importance: Any, scales: Any, levels: Any, middles: Any, best: Any
) -> None:
    """Candidate with the least sum of importance * (w - w')^2 for each row; the first of equals.

    Args:
        weight: [n, g] one group.
        importance: [g].
        scales: [candidates, n].
        levels: [16].
        middles: [15].
        best: [n] int64, written.
    """
    none, one = levels[0] - levels[0], levels[0] / levels[0]
    for i in range(weight.shape[0]):
        least = np.inf
        for c in range(scales.shape[0]):
            scale = scales[c, i]
            inverse, loss = one / scale, none
            for j in range(weight.shape[1]):
                level = levels[_nearest(weight[i, j] * inverse, middles)]
                difference = level * scale - weight[i, j]
                loss += importance[j] * difference * difference
            if loss < least:
                least, best[i] = loss, c


@compiled
def _refit(weight: Any, importance: Any, scale: Any, levels: Any, middles: Any, out: Any) -> None:
    """Least-squares scale [n] for the codes that a scale gives: sum h v w / sum h v^2."""
    for i in range(weight.shape[0]):
        product = square = levels[0] - levels[0]
        for j in range(weight.shape[1]):
            level = levels[_nearest(weight[i, j] / scale[i], middles)]
            product += importance[j] * level * weight[i, j]
            square += importance[j] * level * level
        out[i] = product / square if product != 0 else scale[i]


@compiled
def _round_group(
    weight: Any,
    first: Any,
    last: Any,
    factor: Any,
    scale: Any,
    levels: Any,
    middles: Any,
    codes: Any,
    errors: Any,
) -> None:
    """Round as `inner_loops.round_group`, to levels."""
    for i in range(weight.shape[0]):
        for j in range(first, last):
            code = _nearest(weight[i, j] / scale[i], middles)
            codes[i, j] = np.uint8(code)
            error = (weight[i, j] - levels[code] * scale[i]) / factor[j, j]
            errors[i, j] = error
            for k in range(j + 1, weight.shape[1]):
                weight[i, k] -= error * factor[j, k]


@compiled
def _descend_group(
    gradient: Any,
    first: Any,
    last: Any,
    hessian: Any,
    scale: Any,
    levels: Any,
    middles: Any,
    values: Any,
    change: Any,
) -> None:
    """Move as `inner_loops.descend_group`; `values` [n, b] are levels, changed."""
    for i in range(gradient.shape[0]):
        for j in range(first, last):
            wanted = values[i, j] - gradient[i, j] / (hessian[j, j] * scale[i])
            level = levels[_nearest(wanted, middles)]
            if level != values[i, j]:
                step = (level - values[i, j]) * scale[i]
                values[i, j] = level
                change[i, j] += step
                for k in range(gradient.shape[1]):
                    gradient[i, k] += step * hessian[j, k]


class LevelTable:
    """The levels as numbers of one type, and rounding to them."""

    def __init__(self, table: npt.NDArray[np.int8], dtype: npt.DTypeLike) -> None:
        self.levels: Reals = table.astype(dtype)
        self.middles: Reals = ((self.levels[1:] + self.levels[:-1]) / 2).astype(dtype)

    def search_scale(
        self, group: Reals, importance: Reals, *, threads: int = 1, thorough: bool = False
    ) -> npt.NDArray[np.float16]:
        """Scale with the least sum of importance * (w - w')^2 when rounded to the nearest level.

        Args:
            group: [N, g] weights of one group.
            importance: [g] of each input.
            threads: number of chunks of outputs searched at once.
            thorough: try more scales, and then the one that is best for the codes found.

        Returns:
            [N] float16, not zero.
        """
        at = np.abs(group).argmax(1)
        greatest = group[np.arange(len(group)), at].astype(np.float32)
        spans = np.array(_THOROUGH_SPANS if thorough else _SPANS, np.float32)[:, None]
        ends = (greatest * spans / np.float32(end) for end in self.levels[[0, -1]])
        scale = self._best(group, importance, float16(np.concatenate(list(ends))), threads)
        for _ in range(_REFITS if thorough else 0):
            refitted = np.empty(len(group), group.dtype)
            self._each(_refit, threads, group, importance, scale.astype(group.dtype), refitted)
            scale = self._best(group, importance, np.stack([scale, float16(refitted)]), threads)
        return scale

    def round_group(
        self,
        values: Reals,
        inside: tuple[int, int],
        factor: Reals,
        scale: npt.NDArray[np.float16],
        codes: npt.NDArray[np.uint8],
        errors: Reals,
        threads: int,
    ) -> None:
        """Round inputs `inside` of a block by GPTQ; see `inner_loops.round_group`."""
        wide = scale.astype(values.dtype)

        def chunk(rows: slice) -> None:
            _round_group(
                values[rows], *inside, factor, wide[rows], self.levels, self.middles,
                codes[rows], errors[rows],
            )  # fmt: skip

        in_chunks(len(values), threads, chunk)

    def descend_group(
        self,
        gradient: Reals,
        inside: tuple[int, int],
        hessian: Reals,
        scale: Reals,
        values: Reals,
        change: Reals,
        threads: int,
    ) -> None:
        """Move levels of inputs `inside` of a block; see `inner_loops.descend_group`."""

        def chunk(rows: slice) -> None:
            _descend_group(
                gradient[rows], *inside, hessian, scale[rows], self.levels, self.middles,
                values[rows], change[rows],
            )  # fmt: skip

        in_chunks(len(values), threads, chunk)

    def codes(self, values: Reals) -> npt.NDArray[np.uint8]:
        """Return the codes of values that are levels: uint8 of any shape."""
        return np.searchsorted(self.levels, values).astype(np.uint8)

    def _best(
        self,
        group: Reals,
        importance: Reals,
        scales: npt.NDArray[np.float16],
        threads: int,
    ) -> npt.NDArray[np.float16]:
        best = np.zeros(len(group), np.int64)
        wide = np.ascontiguousarray(scales.T.astype(group.dtype))

        def chunk(rows: slice) -> None:
            candidates = np.ascontiguousarray(wide[rows].T)
            _best_scale(group[rows], importance, candidates, self.levels, self.middles, best[rows])

        in_chunks(len(group), threads, chunk)
        return scales[best, np.arange(len(group))]

    def _each(
        self,
        loop: Callable[..., None],
        threads: int,
        group: Reals,
        importance: Reals,
        scale: Reals,
        out: Reals,
    ) -> None:
        def chunk(rows: slice) -> None:
            loop(group[rows], importance, scale[rows], self.levels, self.middles, out[rows])

        in_chunks(len(group), threads, chunk)


def quantise(
    weight: npt.NDArray[np.float32], group_size: int, *, threads: int = 1, thorough: bool = False
) -> Quantised:
    """Round each weight to the nearest of `LEVELS`, scales searched, all inputs alike.

    Args:
        weight: [N, K] float32, finite; K a multiple of `group_size`.
        group_size: inputs that share a scale.
        threads: number of chunks of outputs searched at once.
        thorough: as for `LevelTable.search_scale`.
    """
    N, K = weight.shape
    table = LevelTable(LEVELS, np.float32)
    codes = np.empty((N, K), np.uint8)
    scales = np.empty((N, K // group_size), np.float16)
    alike = np.ones(group_size, np.float32)
    for g, first in enumerate(range(0, K, group_size)):
        group = np.ascontiguousarray(weight[:, first : first + group_size])
        scale = table.search_scale(group, alike, threads=threads, thorough=thorough)
        relative = group / scale[:, None].astype(np.float32)
        codes[:, first : first + group_size] = np.searchsorted(table.middles, relative)
        scales[:, g] = scale
    return Quantised(codes, scales, None, 4, group_size, table=LEVELS)


def float16(scales: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    """Scales of either sign as float16; the least number above zero in place of zero.

    A scale of zero belongs to a group of zeros, and no level is zero.
    """
    rounded = scales.astype(np.float16)
    rounded[rounded == 0] = np.finfo(np.float16).smallest_subnormal
    return rounded
