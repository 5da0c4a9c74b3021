"""Choose the kind of levels that a format has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantise.even_levels import EvenLevels
from edgetok.converter.quantise.level_table import LevelTable
from edgetok.converter.quantise.levels import Levels


def choose_levels(
    bits: int,
    dtype: npt.DTypeLike,
    *,
    symmetric: bool = False,
    table: npt.NDArray[np.int8] | None = None,
) -> Levels:
    """Return the levels of a table, or even ones where there is none.

    Args:
        bits: 2 to 8; of even levels.
        dtype: float32 or float64, in which all is computed.
        symmetric: no zero points; of even levels.
        table: [16] rising levels.
    """
    if table is None:
        return EvenLevels(bits, dtype, symmetric=symmetric)
    return LevelTable(table, dtype)
