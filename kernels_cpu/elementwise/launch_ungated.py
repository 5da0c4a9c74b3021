"""The instructions of activations without a gate. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, instruction

UNGATED_X, UNGATED_SIZE = range(2, 4)

UNGATED = ("silu", "gelu", "gelu_tanh", "relu2")  # kernels by their names


def ungated(kernels: Addresses, *, kind: str, x: int, size: int, wait: bool) -> Instruction:
    """x = activation(x).

    Args:
        kernels: the loaded kernels.
        kind: one of UNGATED.
        x: address of float32 [T, size].
        size: of a row.
        wait: see `instruction`.

    Raises:
        ShapeError: the kind is unknown, or a row has no size.
    """
    if kind not in UNGATED or size < 1:
        raise ShapeError(f"{kind!r} of {size}, expected one of {', '.join(UNGATED)} of 1 or more")
    return instruction(kernels.address(kind), x, size, wait=wait)
