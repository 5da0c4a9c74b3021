"""How many slots each head gets where heads compete (after Ada-KV, arXiv 2407.11550)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetok.cache.view import Floats

Counts = npt.NDArray[np.int64]


def wanted(scores: Sequence[Floats], total: int, floor: int) -> Counts:
    """How many tokens each head keeps if the highest scores of all heads stay.

    Args:
        scores: of each head's tokens; infinite for tokens that stay in any case.
        total: tokens that may stay.
        floor: of each head's own best that stay whatever the others have.

    Returns:
        int64 [heads]; their sum is at most `total` wherever infinite scores and floors allow it.
    """
    best = []
    for score in scores:
        ranked = -np.sort(-score)
        ranked[:floor] = np.inf
        best.append(ranked)
    every = np.concatenate(best)
    if len(every) <= total:
        return np.array([len(score) for score in scores], np.int64)
    least = np.partition(every, len(every) - total)[len(every) - total]
    return np.array([np.count_nonzero(ranked >= least) for ranked in best], np.int64)


def in_units(shares: npt.NDArray[np.float64], total: int, unit: int, low: int, high: int) -> Counts:
    """Whole units as near to `shares` as possible, in low..high, adding up to `total`.

    Args:
        shares: [heads], what each would have.
        total: a multiple of `unit`.
        unit: sizes are multiples of it.
        low: least size, a multiple of `unit`; heads * low <= total.
        high: largest, likewise; heads * high >= total.
    """
    sizes = np.clip(shares // unit * unit, low, high).astype(np.int64)
    while (gap := total - int(sizes.sum())) != 0:
        step = unit if gap > 0 else -unit
        able = (sizes + step >= low) & (sizes + step <= high)
        lack = np.where(able, (shares - sizes) * np.sign(gap), -np.inf)
        sizes[int(np.argmax(lack))] += step
    return sizes
