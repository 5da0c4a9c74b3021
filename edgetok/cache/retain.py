"""What this runtime keeps by default.

    score = |k - mean key|^2 |v|

Attention is the same when one vector is added to all keys, so what a key says is how far it lies
from their mean (KeyDiff, arXiv 2504.15364, looks at the angle instead, which is not the same
then). For queries that look in any direction alike with variance s^2, a key's expected weight is
that of the mean key times

    E exp(q (k - mean) / sqrt(d)) = exp(s^2 |k - mean|^2 / (2 d)),

which grows as the square of the distance while weights are spread: expected attention (arXiv
2510.00636) that knows nothing of the queries, which so far looked for something else. The norm of
the value is what such a weight would bring.
"""

from __future__ import annotations

import numpy as np

from edgetok.cache.view import Floats, HeadView


def retain(view: HeadView) -> Floats:
    """See above; float32 [n]."""
    away = view.keys - view.keys.mean(axis=0)
    return np.asarray((away * away).sum(axis=1) * view.value_norms)
