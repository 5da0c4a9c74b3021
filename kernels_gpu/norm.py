"""RMSNorm and the residual sum.

    rms_norm: out = x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467), or y += scale * that
    to_half: the same, divided by its largest magnitude, in float16: what `matmul_nbits` takes

A program takes a row, or several short ones; sums are float32. Of one token `matmul_nbits` takes
the norm itself.
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.jit import PLANES, check, jit, launch, next_power, plane_stride

_VALUES = 2048  # of a program that takes several rows


@jit
def _rms_norm(  # type: ignore[no-untyped-def]
    x, weight, out, rows, row_stride, out_stride, size, span, eps, scale,
    ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (at < span)
    v = tl.load(x + row * row_stride + at, mask=live, other=0)
    v *= 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / size + eps)[:, None]
    v *= tl.load(weight + at, mask=at < span, other=0)
    to = out + row * out_stride + at
    if ADD:
        v = tl.load(to, mask=live, other=0) + scale * v
    tl.store(to, v, mask=live)


@jit
def _to_half(  # type: ignore[no-untyped-def]
    x, weight, out, out_scale, rows, span, size, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at = tl.arange(0, BLOCK)[None, :]
    live = (row < rows)[:, None] & (at < span)
    v = tl.load(x + row[:, None] * span + at, mask=live, other=0)
    if weight is not None:
        v *= 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / size + eps)[:, None]
        v *= tl.load(weight + at, mask=at < span, other=0)
    # A row of zeros, or so small that its inverse is not a float32, is divided by 1.
    largest = tl.max(tl.abs(v), axis=1)
    scale = tl.where(largest > 1e-30, largest, 1.0)
    v = (v / scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * span + at, v, mask=live)
    tl.store(out_scale + row, scale, mask=row < rows)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    *,
    size: int,
    eps: float,
    add: float | None = None,
) -> None:
    """Normalise rows.

    Args:
        x: float32 [rows, span]; zeros past `size` values, in any order.
        weight: float32 [span], in the same order.
        out: float32 [rows, span]; may be x.
        size: values of a row that count.
        eps: added to the mean.
        add: None to overwrite `out`; else it gets this times the result.

    Raises:
        ShapeError: arrays do not go together.
    """
    rows, span = x.shape
    check("x", x, torch.float32, -1, -1)
    check("weight", weight, torch.float32, span)
    check("out", out, torch.float32, rows, span)
    if not 0 < size <= span:
        raise ShapeError(f"a norm over {size} of {span} values")
    some, sizes = _sizes(rows, span)
    launch(
        _rms_norm, (some,), x, weight, out, rows, x.stride(0), out.stride(0), size, span,
        float(eps), float(add or 0.0), ADD=add is not None, **sizes,
    )  # fmt: skip


def to_half(
    x: torch.Tensor,
    out: torch.Tensor,
    out_scale: torch.Tensor,
    *,
    size: int,
    weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Inputs of a product of many tokens.

    Args:
        x: float32 [T, 8, plane_stride(size)].
        out: float16 or float32, the same shape: x or its norm, divided by the row's largest
            magnitude, so that no value leaves the range of float16.
        out_scale: float32 [T], what each row was divided by.
        size: inputs of a token.
        weight: float32 [8, plane_stride(size)] of the norm; None for none.
        eps: added to the mean.

    Raises:
        ShapeError: arrays do not go together.
    """
    T, S = len(x), plane_stride(size)
    check("x", x, torch.float32, -1, PLANES, S)
    check("out", out, (torch.float16, torch.float32), T, PLANES, S)
    check("out_scale", out_scale, torch.float32, T)
    if weight is not None:
        check("weight", weight, torch.float32, PLANES, S)
    if not (x.is_contiguous() and out.is_contiguous()):
        raise ShapeError("rows of x and out must follow each other")
    some, sizes = _sizes(T, PLANES * S)
    launch(_to_half, (some,), x, weight, out, out_scale, T, PLANES * S, size, float(eps), **sizes)


def _sizes(rows: int, span: int) -> tuple[int, dict[str, int]]:
    """Programs, rows of each, and about 16 values a thread."""
    block = next_power(span)
    each = min(next_power(rows), max(1, _VALUES // block))
    warps = max(1, min(16, each * block // 512))
    return -(-rows // each), {"ROWS": each, "BLOCK": block, "warps": warps}
