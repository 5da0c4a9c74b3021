"""The gate of the feed-forward layer, and the cap of the logits.

    gated: out = activation(gate) * up (arXiv 2002.05202)
    softcap: x = limit * tanh(x / limit) (arXiv 2408.00118, section 2)

Products apply both as they end; `gated` alone is for a gate and an up of different formats.
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.jit import PLANES, check, jit, launch, plane_stride

KINDS = {"silu": 1, "gelu": 2, "gelu_tanh": 3, "relu2": 4}


@jit
def tanh(x):  # type: ignore[no-untyped-def]
    """Compute tanh from the exponential of -2 |x|, which cannot overflow."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@jit
def softcap(x, limit):  # type: ignore[no-untyped-def]
    """limit * tanh(x / limit), or x where the limit is 0."""
    safe = tl.where(limit > 0, limit, 1.0)
    return tl.where(limit > 0, tanh(x / safe) * limit, x)


@jit
def activate(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """silu, gelu by the error function, its tanh approximation, or max(x, 0)^2."""
    if KIND == 1:
        y = x / (1.0 + tl.exp(-x))
    elif KIND == 2:
        y = x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))
    elif KIND == 4:
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    else:
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    return y


@jit
def _gated(  # type: ignore[no-untyped-def]
    gate, up, out, size, row_stride, S, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    t = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for p in tl.static_range(8):
        live = 8 * word + p < size
        g = tl.load(gate + t * row_stride + 8 * word + p, mask=live, other=0)
        u = tl.load(up + t * row_stride + 8 * word + p, mask=live, other=0)
        tl.store(out + (t * 8 + p) * S + word, activate(g, KIND) * u, mask=word < S)


def gated(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor, kind: str) -> None:
    """out = activation(gate) * up.

    Args:
        gate: float32 [T, size]; rows of gate and up are equally far apart.
        up: the same.
        out: float32 [T, 8, plane_stride(size)], in plane order.
        kind: one of KINDS.

    Raises:
        ShapeError: arrays do not go together, or the kind is unknown.
    """
    (T, size), S = gate.shape, out.shape[-1]
    check("gate", gate, torch.float32, -1, -1)
    check("up", up, torch.float32, T, size)
    check("out", out, torch.float32, T, PLANES, plane_stride(size))
    if kind not in KINDS:
        raise ShapeError(f"activation {kind!r}, expected one of {', '.join(KINDS)}")
    if gate.stride(0) != up.stride(0) or not out.is_contiguous():
        raise ShapeError(f"rows of gate and up are {gate.stride(0)} and {up.stride(0)} apart")
    launch(
        _gated, (T, -(-S // 128)), gate, up, out, size, gate.stride(0), S,
        KIND=KINDS[kind], BLOCK=128,
    )  # fmt: skip
