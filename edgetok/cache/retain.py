"""What this runtime keeps by default: expected attention and observed attention, weighed by value.

    score = (a_expected + a_observed + epsilon) * |v|, as a share of the head's sum

so that heads can be compared: those that look far get the slots of those that do not.
"""

from __future__ import annotations

import numpy as np

from edgetok.cache.expected_attention import expected_weights
from edgetok.cache.view import Floats, HeadView


def retain(view: HeadView) -> Floats:
    """See above; float32 [n] that adds up to 1."""
    expected = expected_weights(view).mean(axis=0)
    observed = view.recent_attention.max(axis=(0, 1))
    score = (
        expected + observed / observed.sum() + np.float32(0.2 / len(expected))
    ) * view.value_norms
    return np.asarray(score / score.sum())
