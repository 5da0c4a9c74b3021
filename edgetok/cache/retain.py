"""What this runtime keeps by default.

    score = (1 - cos(k, mean key)) * (expected attention + epsilon) * |v|

A token is worth keeping where its key says something that others do not (the factor of KeyDiff,
arXiv 2504.15364), where queries to come should look (arXiv 2510.00636), and where its value
is large enough to matter once it is looked at.
"""

from __future__ import annotations

import numpy as np

from edgetok.cache.expected_attention import expected_weights
from edgetok.cache.keydiff import keydiff
from edgetok.cache.view import Floats, HeadView

# Large against one token's expected weight, so that what is rarely looked at but unlike all else,
# as a number told once, is kept; chosen among 0, 0.02 and no expected attention on held-out cases.
_EPSILON = np.float32(0.02)


def retain(view: HeadView) -> Floats:
    """See above; float32 [n]."""
    unlike = np.float32(1.0) + keydiff(view)
    expected = expected_weights(view).mean(axis=0) + _EPSILON
    return np.asarray(unlike * expected * view.value_norms)
