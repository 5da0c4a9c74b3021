"""Round to 16 levels that lie closer near zero: w ~ table[q] * scale, for matrices with a table.

Weights are distributed about like a normal variable, so levels closer near zero lose less than as
many even ones, and need no zero points: 4.5 bits a weight in groups of 32. A scale may be negative,
because the table is not symmetric.

Source: levels: ggml, `ggml-common.h` (IQ4_NL).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from edgetok.converter.quantise.inner_loops import Reals, loops_to
from edgetok.converter.quantise.levels import Codes, Levels, Scales
from edgetok.converter.quantised import Quantised

LEVELS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int8
)
_SPANS = tuple(1.1 - 0.08 * i for i in range(6))  # shares of the weight of greatest magnitude
_THOROUGH_SPANS = tuple(1.15 - 0.04 * i for i in range(14))


@register_jitable  # type: ignore[untyped-decorator]
def _nearest(x: Any, _zero: Any, table: Any) -> Any:
    """Code of the level nearest to x, and that level.

    Args:
        x: a weight divided by its scale.
        _zero: no zero point moves the levels of a table.
        table: levels [16], and middles [15], which lie between them.
    """
    levels, middles = table
    i = 0
    if x > middles[7]:
        i = 8
    if x > middles[i + 3]:
        i += 4
    if x > middles[i + 1]:
        i += 2
    if x > middles[i]:
        i += 1
    return i, levels[i]


_LOOPS = loops_to(_nearest)


class LevelTable(Levels):
    """The levels of a table.

    Attributes:
        levels: [16].
        middles: [15] numbers halfway between two levels.
    """

    def __init__(self, table: npt.NDArray[np.int8], dtype: npt.DTypeLike) -> None:
        """Make them of a table [16], rising, in float32 or float64."""
        self.levels: Reals = table.astype(dtype)
        self.middles: Reals = ((self.levels[1:] + self.levels[:-1]) / 2).astype(dtype)
        super().__init__(_LOOPS, (self.levels, self.middles), dtype)

    def values(self, codes: Codes) -> Reals:
        """Return their levels."""
        return self.levels[codes]

    def codes(self, values: Reals) -> Codes:
        """Return the codes of levels."""
        return np.searchsorted(self.levels, values).astype(np.uint8)

    def _rounded(self, relative: Reals, zero: Codes) -> Codes:
        return np.searchsorted(self.middles, relative).astype(np.uint8)

    def _candidates(self, group: Reals, thorough: bool) -> tuple[Scales, Codes]:
        """Return scales that put the weight of greatest magnitude near the first or last level."""
        at = np.abs(group).argmax(1)
        greatest = group[np.arange(len(group)), at].astype(np.float32)
        spans = np.array(_THOROUGH_SPANS if thorough else _SPANS, np.float32)[:, None]
        ends = (greatest * spans / np.float32(end) for end in self.levels[[0, -1]])
        scales = _float16(np.concatenate(list(ends)))
        return scales, np.zeros(scales.shape, np.uint8)

    def _stored(self, refitted: Reals, scale: Scales) -> Scales:
        return _float16(refitted)


def quantise(
    weight: npt.NDArray[np.float32], group_size: int, *, thorough: bool = False
) -> Quantised:
    """Round each weight to the nearest of `LEVELS`, scales searched, all inputs alike.

    Args:
        weight: [N, K] float32, finite; K a multiple of `group_size`.
        group_size: inputs that share a scale.
        thorough: as for `Levels.search`.
    """
    table = LevelTable(LEVELS, np.float32)
    codes, scales, _ = table.round_alike(weight, group_size, thorough=thorough)
    return Quantised(codes, scales, None, 4, group_size, table=LEVELS)


def _float16(scales: npt.NDArray[np.floating[Any]]) -> Scales:
    """Scales of either sign as float16; the least number above zero in place of zero.

    A scale of zero belongs to a group of zeros, and no level is zero.
    """
    rounded = scales.astype(np.float16)
    rounded[rounded == 0] = np.finfo(np.float16).smallest_subnormal
    return rounded
