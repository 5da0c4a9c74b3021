"""Keep the tokens that future queries are expected to attend to (arXiv 2510.00636).

Queries are taken as Gaussian before their rotation; over the next positions they are rotated by
the mean rotation R. With mean m' = R m and covariance S' = R S R^T the expected weight of a key is

    z_i = exp(k_i m' / sqrt(d) + k_i^T S' k_i / (2 d)),   a_i = z_i / sum z

and the score (a_i + epsilon) * |v_i|, mean over the query heads.
"""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats, HeadView

_FUTURE_TOKENS = 512
_EPSILON = np.float32(0.02)


def expected_weights(view: HeadView) -> Floats:
    """a_i for each query head, [G, n]."""
    stats = view.stats
    now = int(stats.positions[-1]) if len(stats.positions) else 0
    R = view.mean_rotation(now + 1 + np.arange(0, _FUTURE_TOKENS, _FUTURE_TOKENS // 64))
    mean = stats.mean @ R
    covariance = R.T @ stats.covariance @ R
    scale = np.float32(view.scale)
    logits = scale * (mean @ view.keys.T)
    spread = ((view.keys @ covariance) * view.keys).sum(axis=-1)
    logits += np.float32(0.5) * scale * scale * spread
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def expected_attention(view: HeadView) -> Floats:
    """score = (expected weight + epsilon) * norm of the value."""
    return np.asarray((expected_weights(view).mean(axis=0) + _EPSILON) * view.value_norms)
