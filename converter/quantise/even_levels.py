"""Round to 2^bits even levels, w ~ (q - zero) * scale, with the span searched.

Source: the search for a span: the authors' code of GPTQ (`mse`), arXiv 2210.17323.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from edgetok.converter.quantise.inner_loops import Reals, loops_to
from edgetok.converter.quantise.levels import Codes, Levels, Scales
from edgetok.converter.quantise.round_to_nearest import grid
from edgetok.converter.quantised import float16_scales

_SPANS = tuple(1 - 0.05 * i for i in range(11))  # shares of the span from least to greatest
_THOROUGH_SPANS = tuple(1.05 - 0.04 * i for i in range(18))


@register_jitable  # type: ignore[untyped-decorator]
def _nearest(x: Any, zero: Any, top: Any) -> Any:
    """Code of the level nearest to x, and that level; `top` is 2^bits - 1, as a real number."""
    code = min(max(np.rint(x) + zero, top - top), top)
    return code, code - zero


_LOOPS = loops_to(_nearest)


class EvenLevels(Levels):
    """The levels q - zero, q in 0..2^bits - 1."""

    def __init__(self, bits: int, dtype: npt.DTypeLike, *, symmetric: bool = False) -> None:
        """Make them.

        Args:
            bits: 2 to 8.
            dtype: float32 or float64, in which all is computed.
            symmetric: no zero points.
        """
        super().__init__(_LOOPS, np.dtype(dtype).type((1 << bits) - 1), dtype)
        self._bits, self._symmetric = bits, symmetric

    def values(self, codes: Codes) -> Reals:
        """Return codes as real numbers."""
        return codes.astype(self.dtype)

    def codes(self, values: Reals) -> Codes:
        """Return them as codes."""
        return values.astype(np.uint8)

    def _rounded(self, relative: Reals, zero: Codes) -> Reals:
        return (np.rint(relative) + zero[:, None]).clip(0, (1 << self._bits) - 1)

    def _candidates(self, group: Reals, thorough: bool) -> tuple[Scales, Codes]:
        """Return those of some spans; a thorough search tries the zero points beside, too."""
        low, high = group.min(1).astype(np.float32), group.max(1).astype(np.float32)
        spans = np.array(_THOROUGH_SPANS if thorough else _SPANS, np.float32)[:, None]
        scales, zeros = grid(low * spans, high * spans, self._bits, symmetric=self._symmetric)
        if not thorough or self._symmetric:
            return scales, zeros
        beside = [zeros, zeros - (zeros > 0), zeros + (zeros < (1 << self._bits) - 1)]
        return np.concatenate([scales] * 3), np.concatenate(beside).astype(np.uint8)

    def _stored(self, refitted: Reals, scale: Scales) -> Scales:
        return float16_scales(np.where(refitted > 0, refitted, scale).astype(np.float32))
