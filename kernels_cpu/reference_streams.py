"""Several residual streams and sparse gates in plain NumPy: what kernels are compared with.

Source: arXiv 2301.13310; transformers `Gemma3nTextAltUp`, `Gemma3nTextMLP`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sparsify(x: Array, spread: float) -> Array:
    """max(x - mean - spread * deviation, 0) of each row [T, size]."""
    result: Array = np.maximum(x - x.mean(-1, keepdims=True) - spread * x.std(-1, keepdims=True), 0)
    return result


def mix_streams(s: Array, coefs: Array) -> Array:
    """s[j] + sum over i of coefs[j, i] s[i]: [T, n, size] and [T, n, n] -> [T, n, size]."""
    result: Array = s + coefs @ s
    return result


def correct_streams(p: Array, a: Array, coefs: Array) -> Array:
    """p[j] + (1 + coefs[j]) (a - p[0]): [T, n, size], [T, size], [T, n] -> [T, n, size]."""
    result: Array = p + (1 + coefs)[:, :, None] * (a - p[:, 0])[:, None]
    return result


def match_size(x: Array, like: Array, eps: float) -> Array:
    """Give each x[t, j] the root mean square of like[t]: [T, n, size], [T, size] -> as x."""
    wanted = (like**2).mean(-1)[:, None, None]
    result: Array = x * np.sqrt(wanted / np.maximum((x**2).mean(-1, keepdims=True), eps))
    return result
