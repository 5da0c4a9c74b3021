"""The plain NumPy truth of every operator: slow, readable, no SIMD.

Each function computes in the floating-point type of its input, so a test can ask for float64, and
has the name of the kernels that it is the truth of. Axes: T tokens, S keys, K inputs, N outputs, H
query heads, KH key/value heads, D head dim, G groups, g group_size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

# Below this, 127 / absmax would not be a float32; such a block is zero for all purposes.
SMALLEST_ABSMAX = 1e-36


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Args:
        x: [..., size].
        weight: [size], the effective factor.
        eps: added to the mean.

    Source:
        arXiv 1910.07467.
    """
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    normed: Array = x / np.sqrt(mean + x.dtype.type(eps)) * weight.astype(x.dtype)
    return normed


def layer_norm(x: Array, weight: Array, eps: float) -> Array:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight over the last axis. Source: 1607.06450."""
    return rms_norm(x - x.mean(-1, keepdims=True), weight, eps)


def rope(x: Array, positions: Array, inv_freq: Array, attention_factor: float = 1.0) -> Array:
    """Turn dims i and i + R/2 of each head by position * inv_freq[i]; dims from R on stay.

    Args:
        x: [T, heads, D].
        positions: [T].
        inv_freq: [R/2] radians a position.
        attention_factor: cos and sin are multiplied by it.

    Source:
        arXiv 2104.09864, in the half-split order of Hugging Face checkpoints.
    """
    half = inv_freq.shape[0]
    angles = np.outer(positions.astype(np.float64), inv_freq)[:, None, :]
    cos = (np.cos(angles) * attention_factor).astype(x.dtype)
    sin = (np.sin(angles) * attention_factor).astype(x.dtype)
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = (first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :])
    return np.concatenate(turned, axis=-1)


def softcap(x: Array, cap: float) -> Array:
    """cap * tanh(x / cap); x itself where cap is 0. Source: arXiv 2408.00118, section 2."""
    capped: Array = x if cap == 0 else cap * np.tanh(x / cap)
    return capped


def softmax(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis, shifted by the maximum."""
    shifted = np.exp(x - np.max(x, axis=-1, keepdims=True))
    shares: Array = shifted / np.sum(shifted, axis=-1, keepdims=True)
    return shares


def attention_weights(
    q: Array,
    k: Array,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks: Array | None = None,
    rest: tuple[Array, Array, Array] | None = None,
) -> Array:
    """softmax(softcap(scale * q k^T)), causal or not; H / KH query heads share a key head.

    Args:
        q: [T, H, D], of the last T of the S positions.
        k: [S, KH, D].
        scale: of the products.
        window: a query sees its own position and the `window - 1` before it; 0: all before it;
            negative: `-window - 1` before and behind it.
        cap: softcap of the scaled products; 0 is none.
        sinks: [H], of each head the score of one more value, of zeros; None: there is none.
        rest: of each key head one more key and value that every query sees: numbers [KH] that are
            added to their scores, keys and values [KH, D]; None: there is none.

    Returns:
        [H, T, S], with a rest [H, T, S + 1]; with sinks rows add up to less than 1.
    """
    (T, H, _), (S, KH, _) = q.shape, k.shape
    if T > S or H % KH:
        raise ShapeError(f"attention of q {q.shape}, k {k.shape}")
    query, key = np.arange(S - T, S)[:, None], np.arange(S)[None, :]
    visible = key <= query if window >= 0 else key < query - window
    if window:
        visible &= key > query - abs(window)
    shown = S + (rest is not None)
    weights = np.empty((H, T, shown), q.dtype)
    for head in range(H):
        shared = head // (H // KH)
        scores = softcap(q[:, head] @ k[:, shared].T * q.dtype.type(scale), cap)
        scores = np.where(visible, scores, -np.inf)
        if rest is not None:
            more = softcap(q[:, head] @ rest[1][shared] * q.dtype.type(scale), cap)
            scores = np.concatenate([scores, more[:, None] + rest[0][shared]], 1)
        if sinks is not None:
            scores = np.concatenate([scores, np.full((T, 1), sinks[head], q.dtype)], 1)
        weights[head] = softmax(scores)[:, :shown]
    return weights


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    sinks: Array | None = None,
    rest: tuple[Array, Array, Array] | None = None,
) -> Array:
    """`attention_weights` times v [S, KH, D], and what the rest has: [T, H, D]."""
    if k.shape != v.shape:
        raise ShapeError(f"attention of k {k.shape}, v {v.shape}")
    weights = attention_weights(q, k, scale=scale, window=window, cap=cap, sinks=sinks, rest=rest)
    if rest is not None:
        v = np.concatenate([v, rest[2][None]])
    group = q.shape[1] // k.shape[1]
    return np.stack([w @ v[:, head // group] for head, w in enumerate(weights)], 1)


def attention_mass(weights: Array, kv_heads: int, first: int = 0) -> Array:
    """Attention mass of each slot: weights [H, T, S] summed over tokens >= first and each group.

    Returns:
        [KH, S].
    """
    H, _, S = weights.shape
    grouped: Array = weights[:, first:].reshape(kv_heads, H // kv_heads, -1, S)
    return np.asarray(grouped.sum((1, 2)))


def hadamard(x: Array) -> Array:
    """H x / sqrt(n) over blocks of n dims of the last axis, n the power of two in its length.

    Source:
        Sylvester's construction; arXiv 2404.00456 for its use on keys and queries.
    """
    block = x.shape[-1] & -x.shape[-1]
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix = (matrix / math.sqrt(block)).astype(x.dtype)
    turned: Array = x.reshape(*x.shape[:-1], x.shape[-1] // block, block) @ matrix
    return turned.reshape(x.shape)


def quantise_slots(x: npt.NDArray[np.float32]) -> tuple[Bytes, Array, Array]:
    """Codes 0..15, scale and base of a 4-bit cache: x = code * scale + base over the last axis.

    Codes divide what is between the smallest and the largest of x and 0 evenly; scale and base are
    their least squares fit to x, rounded to bfloat16.

    Returns:
        codes like x, scales [..., 1] and bases [..., 1], both float32.
    """

    def nearest(v: Array) -> Array:
        bits = v.astype(np.float32).view(np.uint32).astype(np.int64)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return bits.astype(np.uint32).view(np.float32)

    zero = np.float32(0)
    low = np.minimum(x.min(-1, keepdims=True), zero)
    between = np.maximum(x.max(-1, keepdims=True), zero) - low
    inverse = np.zeros_like(between)
    np.divide(np.float32(15), between, out=inverse, where=between >= SMALLEST_ABSMAX)
    codes = np.rint((x - low) * inverse)
    off, mean = codes - codes.mean(-1, keepdims=True), x.mean(-1, keepdims=True)
    spread = np.square(off).sum(-1, keepdims=True)
    scale = np.zeros_like(between)
    np.divide((off * (x - mean)).sum(-1, keepdims=True), spread, out=scale, where=spread > 0)
    scale = nearest(np.maximum(scale, zero))
    base = nearest(mean - scale * codes.mean(-1, keepdims=True))
    return codes.astype(np.uint8), scale, base


def short_conv(gate_in: Array, gate_out: Array, value: Array, weight: Array) -> Array:
    """gate_out[t] * sum over j of weight[:, j] * u[t - taps + 1 + j], where u = gate_in * value.

    Before the first token u is 0.

    Args:
        gate_in: [T, size].
        gate_out: [T, size].
        value: [T, size].
        weight: [size, taps].

    Returns:
        [T, size].

    Source: transformers `Lfm2ShortConv`.
    """
    u, taps = gate_in * value, weight.shape[1]
    before = np.concatenate([np.zeros((taps - 1, u.shape[1]), u.dtype), u])
    convolved = sum(weight[:, j] * before[j : j + len(u)] for j in range(taps))
    return np.asarray(gate_out * convolved)


def route(
    scores: Array,
    top: int,
    *,
    sigmoid: bool = False,
    bias: Array | None = None,
    normed: bool = True,
    sum_eps: float = 0.0,
    factor: float = 1.0,
    scales: Array | None = None,
) -> tuple[npt.NDArray[np.int64], Array]:
    """Choose experts for each token.

    Args:
        scores: [T, experts], the router's results.
        top: how many a token gets.
        sigmoid: probabilities are sigmoids of the scores, not their softmax.
        bias: [experts], added for the choice alone.
        normed: shares are divided by their sum + sum_eps.
        sum_eps: see above.
        factor: shares are multiplied by it.
        scales: [experts], which an expert's share is multiplied by, too.

    Returns:
        Numbers of the chosen experts and their shares, [T, top] each, best first.

    Source:
        arXiv 2101.03961; the bias arXiv 2408.15664.
    """
    p = 1 / (1 + np.exp(-scores)) if sigmoid else softmax(scores)
    keys = p if bias is None else p + bias
    chosen = np.argsort(-keys, axis=-1, kind="stable")[:, :top]
    shares = np.take_along_axis(p, chosen, axis=-1)
    if normed:
        shares = shares / (shares.sum(-1, keepdims=True) + sum_eps)
    shares = factor * shares
    return chosen, shares if scales is None else shares * scales[chosen]


def activation(x: Array, kind: str) -> Array:
    """silu, gelu (erf), gelu_tanh, relu2 or sigmoid.

    Source: arXiv 1702.03118, 1606.08415, 2109.08668.
    """
    y: Array
    if kind in ("silu", "sigmoid"):
        with np.errstate(over="ignore"):
            y = (x if kind == "silu" else 1) / (1 + np.exp(-x))
    elif kind == "gelu":
        erf = np.array([math.erf(v) for v in (x / math.sqrt(2)).ravel()]).reshape(x.shape)
        y = (x * (0.5 + 0.5 * erf)).astype(x.dtype)
    elif kind == "gelu_tanh":
        y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    elif kind == "relu2":
        y = np.maximum(x, 0) ** 2
    else:
        raise ShapeError(f"activation {kind!r}, expected silu, gelu, gelu_tanh, relu2 or sigmoid")
    return y


def gated(gate: Array, up: Array, kind: str) -> Array:
    """activation(gate) * up, the SwiGLU family. Source: arXiv 2002.05202.

    clamped_swiglu is g sigmoid(1.702 g) (u + 1), g = min(gate, 7), u = up within -7..7.
    """
    if kind == "clamped_swiglu":
        gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
        y: Array = activation(1.702 * gate, "sigmoid") * gate * (up + 1)
        return y
    return activation(gate, kind) * up
