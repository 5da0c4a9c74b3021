"""Scores that count with those of tokens nearby: without what is around it a token says little."""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats


def with_around(scores: Floats, around: int) -> Floats:
    """Sum of each score [n] and those of so many before it and after it; the ends are repeated."""
    padded = np.pad(scores, around, mode="edge")
    total = padded[: len(scores)].copy()
    for i in range(1, 2 * around + 1):  # one after the other, as kernels add
        total += padded[i : i + len(scores)]
    return total
