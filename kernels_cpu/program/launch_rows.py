"""Instructions that choose which rows of a run go on. No numba here."""

from __future__ import annotations

from collections.abc import Sequence

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, instruction

GATHER_SOURCE, GATHER_TO, GATHER_ROW_WORDS, GATHER_LIST = range(2, 6)
USE_LIST = 2


def go_on(
    kernels: Addresses, *, rows: int, moves: Sequence[tuple[int, int, int]]
) -> list[Instruction]:
    """Go on with some rows alone, copied together.

    Args:
        kernels: the loaded kernels.
        rows: the ctx slot of their list: CTX_TAIL or CTX_HEAD.
        moves: of each buffer its address, where its rows go (the same address, or memory that does
            not overlap), and the 4-byte words of a row.

    Raises:
        ShapeError: there is nothing to copy, or a row has no words.
    """
    if not moves or any(words < 1 for _, _, words in moves):
        raise ShapeError(f"{len(moves)} buffers to gather, expected at least one, none empty")
    made = [
        instruction(
            kernels.address("gather_rows"), source, to, words, rows, wait=i == len(moves) - 1
        )
        for i, (source, to, words) in enumerate(moves)
    ]
    return [*made, instruction(kernels.address("use_rows"), rows, wait=True)]
