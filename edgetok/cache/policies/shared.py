"""Scores of wide heads, which judge together: unusual in one is noise, in many it is news."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgetok.cache.policies.view import Floats, Ints

OF_ALL = 0.5  # of what all heads say: more gains answers, loses text (docs/notes/cache.md)


def shared(scores: Sequence[Floats], tokens: Sequence[Ints]) -> list[Floats]:
    """Each score relative to its head's mean, plus half the mean of that over heads with the token.

    Args:
        scores: of each head, float32 [n], not negative, of the tokens that it holds.
        tokens: of each head, which they are, ascending.

    Returns:
        The same shapes.
    """
    relative = []
    for score in scores:  # sums are float64, one after the other, as kernels add
        total = float(np.cumsum(score, dtype=np.float64)[-1]) if len(score) else 0.0
        usual = total / len(score) if total > 0.0 else 1.0
        relative.append((score.astype(np.float64) / usual).astype(np.float32))
    if not relative:
        return []
    _, place = np.unique(np.concatenate(tokens), return_inverse=True)
    every = np.concatenate(relative)
    sums = np.zeros(place.max(initial=-1) + 1)
    np.add.at(sums, place, every)
    half = (sums / np.bincount(place) * OF_ALL).astype(np.float32)
    made = every + half[place]
    return np.split(made, np.cumsum([len(score) for score in scores])[:-1])
