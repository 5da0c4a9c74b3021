"""The recurrence of Mamba2 in NumPy, token by token: the truth for its kernels.

Sources: arXiv 2405.21060, section 7; transformers `GraniteMoeHybridMambaLayer`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def state_steps(value: Array, bias: Array) -> Array:
    """softplus(value + bias): [T, heads], the bias [heads]."""
    return np.asarray(np.logaddexp(0, value + bias))


def state_space(
    source: Array, steps: Array, log_rate: Array, skip: Array, *, groups: int, state_dim: int
) -> Array:
    """The recurrence from an empty state on. See `models/layers/mamba2.py`.

    Args:
        source: [T, heads * head_dim + 2 * groups * state_dim]: x, B and C.
        steps: [T, heads].
        log_rate: [heads].
        skip: [heads].
        groups: of B and C; `heads / groups` heads share one.
        state_dim: of a group.

    Returns:
        [T, heads * head_dim].
    """
    tokens, heads = steps.shape
    width = source.shape[1] - 2 * groups * state_dim
    x = source[:, :width].reshape(tokens, heads, -1)
    b, c = (
        np.repeat(half.reshape(tokens, groups, state_dim), heads // groups, axis=1)
        for half in np.split(source[:, width:], 2, axis=1)
    )
    state = np.zeros((heads, x.shape[2], state_dim), source.dtype)
    y = np.empty_like(x)
    for t in range(tokens):
        kept = np.exp(-np.exp(log_rate) * steps[t])
        new = np.einsum("hd,hn->hdn", steps[t][:, None] * x[t], b[t])
        state = kept[:, None, None] * state + new
        y[t] = np.einsum("hdn,hn->hd", state, c[t]) + skip[:, None] * x[t]
    return y.reshape(tokens, -1)
