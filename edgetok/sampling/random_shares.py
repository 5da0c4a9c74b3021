"""The random numbers of a generation."""

from __future__ import annotations

import numpy as np


class RandomShares:
    """A stream of numbers in [0, 1); equal seeds give equal streams. Not to be shared."""

    def __init__(self, seed: int | None) -> None:
        """Start a stream; None draws a seed."""
        self._rng = np.random.default_rng(seed)

    def next(self) -> float:
        """Return the next number."""
        return float(self._rng.random())
