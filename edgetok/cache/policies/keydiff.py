"""The tokens whose keys are least like the others (KeyDiff, arXiv 2504.15364)."""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats, HeadView


def keydiff(view: HeadView) -> Floats:
    """score = -cosine of a key and the mean of all normalised keys."""
    norms = np.linalg.norm(view.keys, axis=1, keepdims=True)
    unit = view.keys / np.maximum(norms, np.float32(1e-12))
    anchor = unit.mean(axis=0)
    return np.asarray(-(unit @ anchor) / max(float(np.linalg.norm(anchor)), 1e-12), np.float32)
