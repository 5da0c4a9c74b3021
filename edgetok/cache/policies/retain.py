"""Keep keys far from the mean key as they are stored; `content` measures them better.

    score = |k - mean key|^2 |v|,   0 where |k - mean key|^2 is above 6 times its median

Attention is the same when one vector is added to all keys, so what a key says is how far it lies
from their mean (KeyDiff, arXiv 2504.15364, looks at the angle instead, which is not the same
then). For queries that look in any direction alike with variance s^2, a key's expected weight is
that of the mean key times

    E exp(q (k - mean) / sqrt(d)) = exp(s^2 |k - mean|^2 / (2 d)),

which grows as the square of the distance while weights are spread: expected attention (arXiv
2510.00636) that knows nothing of the queries, which so far looked for something else. The norm of
the value is what such a weight would bring. A key much farther than usual is one that training
never placed, such as a byte of a rare character: kept for ever, it would draw attention from all
the rest.
"""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats, HeadView

# In the default model names, numbers and ends of messages reach 4.8, a rare character's byte 9.6.
_MOST = np.float32(6.0)


def retain(view: HeadView) -> Floats:
    """See above; float32 [n]."""
    away = view.keys - view.keys.mean(axis=0)
    far = np.asarray((away * away).sum(axis=1))
    far = np.where(far > _MOST * np.median(far), np.float32(0.0), far)
    return np.asarray(far * view.value_norms)
