"""The tokens that the last query looks at (TOVA, arXiv 2401.06104)."""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats, HeadView


def tova(view: HeadView) -> Floats:
    """score = attention weight of the last query, mean over query heads."""
    return np.asarray(view.recent_attention[-1].mean(axis=0))
