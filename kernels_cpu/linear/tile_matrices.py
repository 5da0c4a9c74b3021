"""Steps of tile products where an instruction multiplies matrices of bytes (Arm's `usmmla`).

    acc [2 rows, 2 tokens] += u [2 rows, 8 inputs] @ a [2 tokens, 8 inputs].T

Two steps of four inputs are one of matrices. Unpacking stores their codes as 8 inputs of 2 rows
each, two tokens' activations are put together when they are read, and a block's sums come back to a
vector of rows for each token before they meet the scales. So scratch, activations, scales and zero
points are as everywhere. Sums are exact: results have the same bits as those of `sdot`.

Source: Arm Architecture Reference Manual, USMMLA (vector); feature FEAT_I8MM.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.linear.tile_shape import ROW_BYTES, R
from edgetok.kernels_cpu.simd.composing import at, number
from edgetok.kernels_cpu.simd.emit import (
    _I32,
    _I64,
    I32,
    MATRICES,
    U8,
    VB,
    _load,
    _shuffle,
)
from edgetok.kernels_cpu.simd.memory import load_u8
from edgetok.kernels_cpu.simd.ops import multiply_matrices


def matrix_steps(planes: int, steps: int) -> list[tuple[int, int]]:
    """Pairs of steps whose inputs, twice four, are those of matrices (`emit.MATRICES`).

    A step is a plane of a word; planes of a word come before the next word. Two words of a plane
    are eight activations side by side; where there is one word, two planes of it are paired.
    """
    if steps < 2 * planes:
        return [(k, k + 1) for k in range(0, steps, 2)]
    return [
        (k + plane, k + planes + plane)
        for plane in range(planes)
        for k in range(0, steps, 2 * planes)
    ]


def words_together(planes: int, steps: int) -> int:
    """How many words of packed codes are unpacked together: those whose steps are paired."""
    return 2 if MATRICES and steps >= 2 * planes else 1


def in_matrices(b: Any, codes: list[Any], planes: int) -> list[Any]:
    """Vectors of steps, four inputs of four rows each, to eight inputs of two rows each.

    A pair's first vector becomes that of rows 0 and 1, the second one that of rows 2 and 3.
    """
    made = list(codes)
    for pair in matrix_steps(planes, len(codes)):
        x, y = (b.bitcast(codes[step], I32.ll) for step in pair)
        for step, lanes in zip(pair, ([0, 4, 1, 5], [2, 6, 3, 7]), strict=True):
            made[step] = b.bitcast(_shuffle(b, x, lanes, y), U8.ll)
    return made


def multiply_steps(
    b: Any, planes: int, acc: list[Any], u: Any, x: Any, xb: Any, tokens: int, steps: int
) -> list[Any]:
    """`acc` plus `steps` steps of products, two rows and two tokens at a time.

    Args:
        b: the builder.
        planes: of packed codes.
        acc: for each vector of rows and each two tokens: sums of its first two rows, and of others.
        u: address of unpacked codes.
        x: of the first token's activations.
        xb: bytes to the next token's.
        tokens: an even number.
        steps: of four inputs each.
    """
    acc, rows = list(acc), [at(b, x, t, xb) for t in range(tokens)]
    for pair in matrix_steps(planes, steps):
        places = [k // planes * 4 + k % planes * VB for k in pair]
        tokens_of = _token_pairs(b, rows, places, 16 * planes <= 4 * steps)
        for r in range(R):
            for half, k in enumerate(pair):
                weights = load_u8.emit(b, b.add(u, number(k * ROW_BYTES + r * VB)))
                for i, a in enumerate(tokens_of):
                    j = r * tokens + 2 * i + half
                    acc[j] = multiply_matrices(b, acc[j], weights, a)
    return acc


def _token_pairs(b: Any, rows: list[Any], places: list[int], whole: bool) -> list[Any]:
    """Four activations at each of two places, of each two tokens.

    Args:
        b: the builder.
        rows: addresses of the tokens.
        places: bytes from there.
        whole: all 16 bytes about the places are the block's: other steps load the same ones.
    """
    first, second = places
    if second != first + 4:  # of two planes
        found = [[_load(b, b.add(row, number(p)), _I32) for p in places] for row in rows]
        return [_packed(b, [*x, *y]) for x, y in zip(found[::2], found[1::2], strict=True)]
    if not whole:
        halves = [_load(b, b.add(row, number(first)), _I64) for row in rows]
        return [_packed(b, [x, y]) for x, y in zip(halves[::2], halves[1::2], strict=True)]
    start = first % VB
    lanes = [*range(start, start + 8), *range(VB + start, VB + start + 8)]
    loaded = [load_u8.emit(b, b.add(row, number(first - start))) for row in rows]
    return [_shuffle(b, x, lanes, y) for x, y in zip(loaded[::2], loaded[1::2], strict=True)]


def _packed(b: Any, values: list[Any]) -> Any:
    """A vector of bytes of integers."""
    made = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        made = b.insert_element(made, value, ir.Constant(_I32, i))
    return b.bitcast(made, U8.ll)


def by_token(b: Any, acc: list[Any]) -> list[Any]:
    """Sums of two rows and two tokens each, to a vector of four rows for each token."""
    pairs = zip(acc[::2], acc[1::2], strict=True)
    return [_shuffle(b, x, lanes, y) for x, y in pairs for lanes in ([0, 2, 4, 6], [1, 3, 5, 7])]
