"""Gates of the feed-forward layer and of attention, and the cap of the logits.

    <kind>_mul: out = activation(gate) * up (arXiv 2002.05202)
    relu2_mul: out = max(gate, 0)^2 * up (arXiv 2109.08668)
    clamped_swiglu_mul: out = g sigmoid(1.702 g) (u + 1), g = min(gate, 7), u = up within -7..7
        (gpt-oss, model card)
    softcap: x = limit * tanh(scale * x / limit) (arXiv 2408.00118, section 2)

Elements are shared out in runs of whole cache lines. Slots: `elementwise/launch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgetok.kernels_cpu.elementwise.launch import (
    ACT_GATE,
    ACT_OUT,
    ACT_SIZE,
    ACT_UP,
    CAP_LIMIT,
    CAP_SCALE,
    CAP_SIZE,
    CAP_X,
    SWIGLU_ALPHA,
    SWIGLU_LIMIT,
)
from edgetok.kernels_cpu.elementwise.norm import share_of_runs
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, inline
from edgetok.kernels_cpu.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32_first,
    read_i64,
    store_f32,
    store_f32_first,
)
from edgetok.kernels_cpu.simd.ops import fma, maximum, minimum, mul, splat_f32

_ALPHA = np.float32(SWIGLU_ALPHA)
_LIMIT = np.float32(SWIGLU_LIMIT)


@inline
def _product(activated, up):  # type: ignore[no-untyped-def]
    return mul(activated, up)


@inline
def _swish_below(gate):  # type: ignore[no-untyped-def]
    """g sigmoid(alpha g) with g = min(gate, limit)."""
    g = minimum(gate, splat_f32(_LIMIT))
    return mul(g, vmath.sigmoid(mul(g, splat_f32(_ALPHA))))


@inline
def _product_one_more(activated, up):  # type: ignore[no-untyped-def]
    """activated * (u + 1) with u = up within -limit..limit."""
    u = maximum(minimum(up, splat_f32(_LIMIT)), splat_f32(-_LIMIT))
    return fma(activated, u, activated)


def _gated(activation: Callable[[Any], Any], product: Callable[[Any, Any], Any] = _product) -> Any:
    @inline
    def gated(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        gate = read_i64(instr + 8 * ACT_GATE)
        up = read_i64(instr + 8 * ACT_UP)
        out = read_i64(instr + 8 * ACT_OUT)
        count = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * ACT_SIZE)
        end = share_of_runs(count, tid + 1, threads)
        i = share_of_runs(count, tid, threads)
        while i + LANES <= end:
            v = product(activation(load_f32(gate + 4 * i)), load_f32(up + 4 * i))
            store_f32(out + 4 * i, v)
            i += LANES
        if i < end:
            v = activation(load_f32_first(gate + 4 * i, end - i))
            v = product(v, load_f32_first(up + 4 * i, end - i))
            store_f32_first(out + 4 * i, v, end - i)

    return gated


_silu = _gated(vmath.silu)
_sigmoid = _gated(vmath.sigmoid)
_gelu = _gated(vmath.gelu)
_gelu_tanh = _gated(vmath.gelu_tanh)
_relu2_gated = _gated(vmath.relu2)
_clamped_swiglu = _gated(_swish_below, _product_one_more)


@kernel
def silu_mul(instr: int, ctx: int, tid: int, threads: int) -> None:
    """out = silu(gate) * up (arXiv 1702.03118)."""
    _silu(instr, ctx, tid, threads)


@kernel
def sigmoid_mul(instr: int, ctx: int, tid: int, threads: int) -> None:
    """out = sigmoid(gate) * up."""
    _sigmoid(instr, ctx, tid, threads)


@kernel
def gelu_mul(instr: int, ctx: int, tid: int, threads: int) -> None:
    """out = gelu(gate) * up with the error function (arXiv 1606.08415)."""
    _gelu(instr, ctx, tid, threads)


@kernel
def gelu_tanh_mul(instr: int, ctx: int, tid: int, threads: int) -> None:
    """out = gelu(gate) * up with its tanh approximation (arXiv 1606.08415)."""
    _gelu_tanh(instr, ctx, tid, threads)


@kernel
def relu2_mul(instr: int, ctx: int, tid: int, threads: int) -> None:
    """out = max(gate, 0)^2 * up (arXiv 2109.08668)."""
    _relu2_gated(instr, ctx, tid, threads)


@kernel
def clamped_swiglu_mul(instr: int, ctx: int, tid: int, threads: int) -> None:
    """out = g sigmoid(1.702 g) (u + 1), g = min(gate, 7), u = up within -7..7."""
    _clamped_swiglu(instr, ctx, tid, threads)


@kernel
def softcap(instr: int, ctx: int, tid: int, threads: int) -> None:
    """x = limit * tanh(scale * x / limit), or scale * x where limit is 0."""
    x = read_i64(instr + 8 * CAP_X)
    scale = f32_from_bits(read_i64(instr + 8 * CAP_SCALE))
    limit = f32_from_bits(read_i64(instr + 8 * CAP_LIMIT))
    count = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * CAP_SIZE)
    end = share_of_runs(count, tid + 1, threads)
    i = share_of_runs(count, tid, threads)
    capped = limit != np.float32(0.0)
    inner = splat_f32(scale / limit if capped else scale)
    outer = splat_f32(limit)
    while i < end:
        rest = min(LANES, end - i)
        v = mul(load_f32_first(x + 4 * i, rest), inner)
        if capped:
            v = mul(vmath.tanh(v), outer)
        store_f32_first(x + 4 * i, v, rest)
        i += LANES
