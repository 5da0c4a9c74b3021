"""Heavy hitters: the tokens that got most attention so far (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from edgetok.cache.policies.view import Floats, HeadView


def h2o(view: HeadView) -> Floats:
    """score = sum of the attention weights of all queries so far."""
    return view.mass
