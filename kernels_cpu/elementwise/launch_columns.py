"""Instructions that take columns of a matrix, and that multiply one by numbers. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, instruction

COLUMNS_X, COLUMNS_OUT, COLUMNS_FIRST, COLUMNS_SIZE, COLUMNS_WIDTH = range(2, 7)
SCALE_X, SCALE_WEIGHT, SCALE_SIZE = range(2, 5)
SCALE_COLUMNS_X, SCALE_COLUMNS_WEIGHT, SCALE_COLUMNS_SIZE, SCALE_COLUMNS_HEADS = range(2, 6)
SIGMOID_GATE, SIGMOID_VALUE, SIGMOID_SIZE, SIGMOID_HEADS = range(2, 6)


def columns(
    kernels: Addresses, *, x: int, out: int, first: int, size: int, width: int, wait: bool
) -> Instruction:
    """out[t] = x[t, first : first + size].

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, width].
        out: address of float32 [T, size]; not in x.
        first: see above.
        size: see above.
        width: see above.
        wait: see `instruction`.

    Raises:
        ShapeError: x has no such columns.
    """
    if size < 1 or first < 0 or first + size > width:
        raise ShapeError(f"columns {first} to {first + size}, expected some of {width}")
    return instruction(kernels.address("columns"), x, out, first, size, width, wait=wait)


def scale_by(kernels: Addresses, *, x: int, weight: int, size: int, wait: bool) -> Instruction:
    """x = weight * x.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, size].
        weight: address of float32 [1].
        size: of a row.
        wait: see `instruction`.

    Raises:
        ShapeError: a row has no size.
    """
    if size < 1:
        raise ShapeError(f"size is {size}, expected at least 1")
    return instruction(kernels.address("scale_by"), x, weight, size, wait=wait)


def scale_columns(
    kernels: Addresses, *, x: int, weight: int, size: int, heads: int, wait: bool
) -> Instruction:
    """x = weight * x for each head.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, heads, size].
        weight: address of float32 [size].
        size: see above.
        heads: see above.
        wait: see `instruction`.

    Raises:
        ShapeError: a size is below 1.
    """
    if size < 1 or heads < 1:
        raise ShapeError(f"{heads} heads of {size} columns, expected at least 1 each")
    return instruction(kernels.address("scale_columns"), x, weight, size, heads, wait=wait)


def sigmoid_scale(
    kernels: Addresses, *, gate: int, value: int, size: int, heads: int, wait: bool
) -> Instruction:
    """value = sigmoid(gate) * value.

    Args:
        kernels: the loaded kernels.
        gate: address of float32 [T, heads].
        value: address of float32 [T, heads, size].
        size: columns that a gate multiplies.
        heads: gates a token.
        wait: see `instruction`.

    Raises:
        ShapeError: a size is below 1.
    """
    if size < 1 or heads < 1:
        raise ShapeError(f"{heads} gates of {size} columns, expected at least 1 each")
    return instruction(kernels.address("sigmoid_scale"), gate, value, size, heads, wait=wait)
