"""The gated delta net in NumPy, token by token: the truth for its kernels.

Sources: arXiv 2412.06464, section 3; transformers `Qwen3NextGatedDeltaNet`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NORM_EPS = 1e-6  # added to the sum of a head's squares


def causal_conv(value: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    """silu(bias + sum over j of weight[:, j] * value[t - taps + 1 + j]); 0 before the first token.

    Args:
        value: [T, size].
        weight: [size, taps].
        bias: [size].

    Returns:
        [T, size].
    """
    taps = weight.shape[1]
    before = np.concatenate([np.zeros((taps - 1, value.shape[1]), value.dtype), value])
    y = bias + sum(weight[:, j] * before[j : j + len(value)] for j in range(taps))
    return np.asarray(y / (1 + np.exp(-y)))


def delta_gates(beta: Array, decay: Array, log_rate: Array, bias: Array) -> tuple[Array, Array]:
    """sigmoid(beta) and -exp(log_rate) * softplus(decay + bias): [T, heads], others [heads]."""
    return 1 / (1 + np.exp(-beta)), -np.exp(log_rate) * np.logaddexp(0, decay + bias)


def delta_rule(
    source: Array,
    beta: Array,
    decay: Array,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
) -> Array:
    """The gated delta rule from an empty state on. See `models/layers/gated_delta.py`.

    Args:
        source: [T, 2 * key_heads * key_dim + value_heads * value_dim]: q, k and v.
        beta: [T, value_heads].
        decay: [T, value_heads], logarithms of what states are multiplied by.
        key_heads: heads of q and k; `value_heads / key_heads` heads of v share one.
        value_heads: heads of v.
        key_dim: of a head of q and k.
        value_dim: of a head of v.

    Returns:
        [T, value_heads * value_dim].
    """
    width = key_heads * key_dim
    q, k, v = np.split(source, [width, 2 * width], axis=1)
    q, k = (
        np.repeat(_normed(x.reshape(-1, key_heads, key_dim)), value_heads // key_heads, axis=1)
        for x in (q, k)
    )
    v = v.reshape(-1, value_heads, value_dim)
    state = np.zeros((value_heads, key_dim, value_dim), source.dtype)
    y = np.empty_like(v)
    for t in range(len(source)):
        state = state * np.exp(decay[t])[:, None, None]
        remembered = np.einsum("hi,hij->hj", k[t], state)
        change = beta[t][:, None] * (v[t] - remembered)
        state = state + k[t][:, :, None] * change[:, None, :]
        y[t] = np.einsum("hi,hij->hj", q[t], state) / np.sqrt(key_dim)
    return y.reshape(len(source), -1)


def _normed(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.square(x).sum(-1, keepdims=True) + NORM_EPS))
