"""The tokens, and their neighbours, that the latest queries look at (SnapKV, arXiv 2404.14469)."""

from __future__ import annotations

import numpy as np

from edgetok.cache.policies.view import Floats, HeadView

_NEIGHBOURS = 3  # on each side: the paper's pooling of 7


def snapkv(view: HeadView) -> Floats:
    """score = attention mass of the latest queries, the largest among neighbours."""
    mass = view.recent_attention.mean(axis=(0, 1))
    padded = np.pad(mass, _NEIGHBOURS, mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1)
    return np.asarray(around.max(axis=1))
