"""Tables of the interpreter (`program.py`): slots and builders. No numba here.

An instruction is INSTR_SLOTS Python integers; a program is an array of them that compiled code
reads in place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.abi import INSTR_SLOTS

Instruction = tuple[int, ...]
Table = npt.NDArray[np.int64]

# Slots of the table that `run_program` gets as its `instr`.
PROGRAM_FIRST = 2  # address of the first instruction
PROGRAM_COUNT = 3  # how many there are
PROGRAM_BARRIER = 4  # address of the team's arrival counter, see LINE
PROGRAM_ARRIVALS = 5  # address of int64 [threads * LINE]: arrivals that each thread waited for
PROGRAM_TICKS = 6  # address of int64 [count], thread 0's ticks by instruction, added up; or 0

# Slots of the table that `team_lead` and `team_work` get as their `instr`.
TEAM_PROGRAM = 2  # address of the program's table, set by the leader before each step
TEAM_CTX = 3  # address of the step's ctx, likewise
TEAM_STEP = 4  # address of the number of the step, see LINE
TEAM_DONE = 5  # address of the count of finished shares
TEAM_CLOSED = 6  # not 0: leave

# A counter is an int64, and the one after it how many threads sleep until it changes. Counters are
# so many int64 apart: two cache lines, as they are fetched.
LINE = 16


def instruction(address: int, *arguments: int, wait: bool = False) -> Instruction:
    """An instruction of the calling convention in `abi.py`.

    Args:
        address: of the kernel.
        arguments: slots 2 and on.
        wait: whether all threads wait for each other afterwards.

    Raises:
        ShapeError: there are more arguments than slots.
    """
    if len(arguments) > INSTR_SLOTS - 2:
        raise ShapeError(f"{len(arguments)} arguments, expected at most {INSTR_SLOTS - 2}")
    rest = INSTR_SLOTS - 2 - len(arguments)
    return (address, int(wait), *arguments, *[0] * rest)


def float_bits(value: float) -> int:
    """The bits of a float32, as kernels take floats."""
    return int.from_bytes(struct.pack("<f", value), "little")


def table(instructions: Sequence[Instruction]) -> Table:
    """Instructions as the array that `PROGRAM_FIRST` points to."""
    return np.array(instructions, np.int64).reshape(-1, INSTR_SLOTS)
