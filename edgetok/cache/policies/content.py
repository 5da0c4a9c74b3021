"""Keep keys whose content lies far from the mean content.

    c = k rotated back to position 0,   score = |c - mean c|^2

`retain` measures distances between keys as they are stored. There, fast pairs of dims are
rotated in all directions, so that their mean is nearly 0 and their length counts in full, whether a
token is unusual or not. Rotated back, they have a mean, and the difference from it says how far the
token itself is from the usual one. The norm of the value is left out: the tokens that real models
lean on, such as delimiters, have small values, and evicting them costs more than a rare fact gains.
Where all heads have equally many slots, a token's score is added to those of its neighbours
(`around.py`): single tokens from all over the text say less than short runs of them.
"""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats, HeadView


def content(view: HeadView) -> Floats:
    """See above; float32 [n]."""
    size = view.rotate(np.ones((1, view.keys.shape[1]), np.float32), np.zeros(1, np.int64))
    keys = view.rotate(view.keys, -view.positions.astype(np.int64)) / size  # attention factors
    away = keys - keys.mean(axis=0)
    return np.asarray((away * away).sum(axis=1), np.float32)
