"""The instruction of a layer norm. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, float_bits, instruction

LAYER_NORM_X, LAYER_NORM_OUT, LAYER_NORM_WEIGHT, LAYER_NORM_SIZE, LAYER_NORM_EPS = range(2, 7)


def layer_norm(
    kernels: Addresses, *, x: int, out: int, weight: int, size: int, eps: float, wait: bool
) -> Instruction:
    """out = (x - mean(x)) / sqrt(variance(x) + eps) * weight for each row.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, size].
        out: address of the same; may be x.
        weight: address of float32 [size].
        size: of a row.
        eps: added to the variance.
        wait: see `instruction`.

    Raises:
        ShapeError: a row has no size.
    """
    if size < 1:
        raise ShapeError(f"size is {size}, expected at least 1")
    args = (x, out, weight, size, float_bits(eps))
    return instruction(kernels.address("layer_norm"), *args, wait=wait)
