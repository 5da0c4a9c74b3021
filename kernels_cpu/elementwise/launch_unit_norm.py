"""The instruction of a norm without a weight. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, float_bits, instruction

UNIT_X, UNIT_OUT, UNIT_SIZE, UNIT_UNITS, UNIT_EPS = range(2, 7)


def unit_norm(
    kernels: Addresses, *, x: int, out: int, size: int, units: int, eps: float, wait: bool
) -> Instruction:
    """out = x / sqrt(mean(x^2) + eps) for each of T * units rows, shared out as by `rms_norm`.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, units, size].
        out: address of the same; may be x.
        size: of a row.
        units: rows a token.
        eps: added to the mean.
        wait: see `instruction`.

    Raises:
        ShapeError: a size is below 1.
    """
    if size < 1 or units < 1:
        raise ShapeError(f"{units} rows of {size}, expected at least 1 each")
    args = (x, out, size, units, float_bits(eps))
    return instruction(kernels.address("unit_norm"), *args, wait=wait)
