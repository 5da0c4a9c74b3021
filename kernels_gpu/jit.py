"""Shared parts of the Triton kernels: decorator, planes of activations, checks at launch.

Plane order. Eight codes lie in a word of weights (2 bits: 16-bit words, 4: 32, 8: 64; 3 bits: 16
and 8), and code p of word i belongs to input 8 i + p. Inputs of products are therefore kept as
eight planes, x[t, p, i] = x[t][8 i + p], so that neighbouring threads read neighbouring memory in
weights and in inputs. A plane has `plane_stride(K)` entries, those past ceil(K / 8) are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from edgetok.errors import ShapeError

PLANES = 8
_PLANE_MULTIPLE = 32  # words of the longest group, 256 codes


def jit(function: Callable[..., Any]) -> Any:
    """Compile for the device; under TRITON_INTERPRET=1 run in NumPy."""
    return triton.jit(function)


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, warps: int = 4, **constants: Any
) -> None:
    """Run a kernel on the current stream; does nothing where the grid is empty.

    Multiplications and additions may be fused, as they are on the CPU.
    """
    if all(grid):
        kernel[grid](*args, num_warps=warps, enable_fp_fusion=True, **constants)


def plane_stride(size: int) -> int:
    """Entries of a plane that holds an eighth of `size` inputs, with room for the longest group."""
    return -(-size // (PLANES * _PLANE_MULTIPLE)) * _PLANE_MULTIPLE


def next_power(value: int) -> int:
    """Return the smallest power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def check(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | tuple[torch.dtype, ...], *shape: int
) -> None:
    """Refuse what a kernel would misread.

    Args:
        name: for the message.
        tensor: to be passed on.
        dtype: what it must be, or a choice.
        shape: what it must be; -1 for any size. Rows may be further apart than they are long.

    Raises:
        ShapeError: dtype, shape or order in memory are others.
    """
    allowed = dtype if isinstance(dtype, tuple) else (dtype,)
    fits = len(shape) == tensor.dim() and all(
        want in (-1, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    inner = tensor[0] if tensor.dim() > 1 and len(tensor) else tensor
    if tensor.dtype not in allowed or not fits or not inner.is_contiguous():
        raise ShapeError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, strides {tensor.stride()}; expected "
            f"{' or '.join(map(str, allowed))} {shape}, contiguous in a row"
        )


def to_planes(x: torch.Tensor) -> torch.Tensor:
    """[T, K] in plane order: [T, 8, plane_stride(K)], zeros behind the end."""
    T, K = x.shape
    stride = plane_stride(K)
    padded = torch.zeros((T, stride * PLANES), dtype=x.dtype, device=x.device)
    padded[:, :K] = x
    return padded.view(T, stride, PLANES).transpose(1, 2).contiguous()


def from_planes(x: torch.Tensor, size: int) -> torch.Tensor:
    """Undo `to_planes`: return [T, size]."""
    return x.transpose(1, 2).reshape(len(x), -1)[:, :size].contiguous()
