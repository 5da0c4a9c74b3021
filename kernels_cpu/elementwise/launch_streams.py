"""Instructions of several residual streams, and of sparse gates. No numba here."""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, float_bits, instruction

SPARSE_X, SPARSE_SIZE, SPARSE_SPREAD = range(2, 5)
MIX_X, MIX_OTHERS, MIX_COEFS, MIX_OUT, MIX_STREAMS, MIX_SIZE = range(2, 8)
(
    CORRECT_X,
    CORRECT_FROM,
    CORRECT_COEFS,
    CORRECT_OTHERS,
    CORRECT_OUT,
    CORRECT_SCALE,
    CORRECT_STREAMS,
    CORRECT_SIZE,
) = range(2, 10)
MATCH_X, MATCH_LIKE, MATCH_COUNT, MATCH_SIZE, MATCH_EPS = range(2, 7)
EACH_X, EACH_Y, EACH_COUNT, EACH_SIZE = range(2, 6)


def sparsify(kernels: Addresses, *, x: int, size: int, spread: float, wait: bool) -> Instruction:
    """x = max(x - mean - spread * deviation, 0) of each row.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, size].
        size: of a row.
        spread: see above.
        wait: see `instruction`.

    Raises:
        ShapeError: a row has no size.
    """
    _check(1, size)
    return instruction(kernels.address("sparsify"), x, size, float_bits(spread), wait=wait)


def mix_streams(
    kernels: Addresses,
    *,
    x: int,
    others: int,
    coefs: int,
    out: int,
    streams: int,
    size: int,
    wait: bool,
) -> Instruction:
    """out[j] = s[j] + sum over i of coefs[streams * j + i] * s[i], of s = x, *others.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, size].
        others: address of float32 [T, streams - 1, size].
        coefs: address of float32 [T, streams * streams].
        out: address of float32 [T, streams, size]; none of the others.
        streams: how many there are.
        size: columns of each.
        wait: see `instruction`.

    Raises:
        ShapeError: there are no streams, or they have no size.
    """
    _check(streams, size)
    args = (x, others, coefs, out, streams, size)
    return instruction(kernels.address("mix_streams"), *args, wait=wait)


def correct_streams(
    kernels: Addresses,
    *,
    x: int,
    source: int,
    coefs: int,
    others: int,
    out: int,
    scale: int,
    streams: int,
    size: int,
    wait: bool,
) -> Instruction:
    """s[j] = source[j] + (1 + coefs[j]) * (x - source[0]); x, *others = s; out = scale * x.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, size].
        source: address of float32 [T, streams, size]; none of the others.
        coefs: address of float32 [T, streams].
        others: address of float32 [T, streams - 1, size], written.
        out: address of float32 [T, size], written.
        scale: address of float32 [size]; 0: out = x.
        streams: how many there are.
        size: columns of each.
        wait: see `instruction`.

    Raises:
        ShapeError: there are no streams, or they have no size.
    """
    _check(streams, size)
    args = (x, source, coefs, others, out, scale, streams, size)
    return instruction(kernels.address("correct_streams"), *args, wait=wait)


def match_size(
    kernels: Addresses, *, x: int, like: int, count: int, size: int, eps: float, wait: bool
) -> Instruction:
    """x[j] *= sqrt(mean(like^2) / max(mean(x[j]^2), eps)).

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, count, size].
        like: address of float32 [T, size].
        count: see above.
        size: see above.
        eps: least mean that is divided by.
        wait: see `instruction`.

    Raises:
        ShapeError: a size is below 1.
    """
    _check(count, size)
    args = (x, like, count, size, float_bits(eps))
    return instruction(kernels.address("match_size"), *args, wait=wait)


def add_each(
    kernels: Addresses, *, x: int, y: int, count: int, size: int, wait: bool
) -> Instruction:
    """x[j] += y.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, count, size].
        y: address of float32 [T, size].
        count: see above.
        size: see above.
        wait: see `instruction`.

    Raises:
        ShapeError: a size is below 1.
    """
    _check(count, size)
    return instruction(kernels.address("add_each"), x, y, count, size, wait=wait)


def _check(count: int, size: int) -> None:
    if size < 1 or count < 1:
        raise ShapeError(f"{count} times {size} columns, expected at least 1 each")
