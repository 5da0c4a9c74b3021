"""Instructions of norms, residuals, activations and rotary embeddings. No numba here.

Addresses point to C-contiguous float32 unless said otherwise; T is the run's number of tokens.
"""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import (
    Addresses,
    Instruction,
    double_bits,
    float_bits,
    instruction,
)

NORM_X, NORM_OUT, NORM_WEIGHT, NORM_SIZE, NORM_UNITS, NORM_EPS = range(2, 8)
ADD_X, ADD_Y, ADD_SIZE, ADD_SCALE = range(2, 6)
ACT_GATE, ACT_UP, ACT_OUT, ACT_SIZE = range(2, 6)
CAP_X, CAP_SIZE, CAP_SCALE, CAP_LIMIT = range(2, 6)
(
    ANGLES_POSITIONS,
    ANGLES_FREQUENCIES,
    ANGLES_FACTOR,
    ANGLES_PAIRS,
    ANGLES_COS,
    ANGLES_SIN,
) = range(2, 8)
ROPE_X, ROPE_COS, ROPE_SIN, ROPE_HEADS, ROPE_HEAD_DIM, ROPE_PAIRS = range(2, 8)

ACTIVATIONS = {
    "silu": "silu_mul",
    "sigmoid": "sigmoid_mul",
    "gelu": "gelu_mul",
    "gelu_tanh": "gelu_tanh_mul",
    "relu2": "relu2_mul",
    "clamped_swiglu": "clamped_swiglu_mul",
}
# Of clamped_swiglu.
SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0


def rms_norm(
    kernels: Addresses,
    *,
    x: int,
    out: int,
    weight: int,
    size: int,
    units: int = 1,
    eps: float,
    wait: bool,
) -> Instruction:
    """out = x / sqrt(mean(x^2) + eps) * weight for each of T * units rows.

    Args:
        kernels: the loaded kernels.
        x: address of [T, units, size].
        out: address of the same; may be x.
        weight: address of [size].
        size: of a row.
        units: rows a token: heads, or 1.
        eps: added to the mean.
        wait: see `instruction`.
    """
    _positive(size=size, units=units)
    args = (x, out, weight, size, units, float_bits(eps))
    return instruction(kernels.address("rms_norm"), *args, wait=wait)


def add_scaled(
    kernels: Addresses, *, x: int, y: int, size: int, scale: float, wait: bool
) -> Instruction:
    """x += scale * y; both [T, size]. Rows are shared out as by `rms_norm` with one unit."""
    _positive(size=size)
    args = (x, y, size, float_bits(scale))
    return instruction(kernels.address("add_scaled"), *args, wait=wait)


def activation_mul(
    kernels: Addresses, *, kind: str, gate: int, up: int, out: int, size: int, wait: bool
) -> Instruction:
    """out = activation(gate) * up; all [T, size]; out may be gate or up.

    Raises:
        ShapeError: `kind` is none of ACTIVATIONS.
    """
    _positive(size=size)
    if kind not in ACTIVATIONS:
        raise ShapeError(f"activation {kind!r}, expected one of {', '.join(ACTIVATIONS)}")
    return instruction(kernels.address(ACTIVATIONS[kind]), gate, up, out, size, wait=wait)


def softcap(
    kernels: Addresses,
    *,
    x: int,
    size: int,
    scale: float,
    limit: float,
    wait: bool,
) -> Instruction:
    """x = limit * tanh(scale * x / limit), x = scale * x where limit is 0.

    Args:
        kernels: the loaded kernels.
        x: address of [T, size].
        size: of a row.
        scale: see above.
        limit: see above.
        wait: see `instruction`.
    """
    _positive(size=size)
    args = (x, size, float_bits(scale), float_bits(limit))
    return instruction(kernels.address("softcap"), *args, wait=wait)


def angles(
    kernels: Addresses,
    *,
    positions: int,
    frequencies: int,
    factor: float,
    pairs: int,
    cos: int,
    sin: int,
    wait: bool,
) -> Instruction:
    """cos = factor cos(position * frequency), and sin likewise, computed in float64.

    Args:
        kernels: the loaded kernels.
        positions: address of int32 [T].
        frequencies: address of float64 [pairs], radians a position; products with positions stay
            below 2^31.
        factor: see above.
        pairs: rotary_dim / 2.
        cos: address of float32 [T, pairs].
        sin: likewise.
        wait: see `instruction`.
    """
    _positive(pairs=pairs)
    args = (positions, frequencies, double_bits(factor), pairs, cos, sin)
    return instruction(kernels.address("angles"), *args, wait=wait)


def rope(
    kernels: Addresses,
    *,
    x: int,
    cos: int,
    sin: int,
    heads: int,
    head_dim: int,
    rotary_dim: int,
    wait: bool,
) -> Instruction:
    """Turn dims i and i + rotary_dim / 2 of each head, in place.

    Args:
        kernels: the loaded kernels.
        x: address of [T, heads, head_dim].
        cos: address of [T, rotary_dim / 2], row t for token t of the run.
        sin: likewise.
        heads: heads a token.
        head_dim: dims of a head.
        rotary_dim: how many of them turn.
        wait: see `instruction`.
    """
    _positive(heads=heads, head_dim=head_dim, rotary_dim=rotary_dim)
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ShapeError(f"rotary_dim is {rotary_dim}, expected an even number up to {head_dim}")
    args = (x, cos, sin, heads, head_dim, rotary_dim // 2)
    return instruction(kernels.address("rope"), *args, wait=wait)


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ShapeError(f"{name} is {size}, expected at least 1")
