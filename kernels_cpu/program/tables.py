"""Tables of the interpreter (`program/interpreter.py`): slots and builders. No numba here.

An instruction is INSTR_SLOTS Python integers; a program is an array of them that compiled code
reads in place.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS

Instruction = tuple[int, ...]
Table = npt.NDArray[np.int64]

# Slots of the table that `run_program` gets as its `instr`.
PROGRAM_FIRST = 2  # address of the first instruction
PROGRAM_STARTS = 3  # address of int64 [phases + 1]: where each phase begins, and the last one ends
PROGRAM_PHASES = 4  # how many there are
PROGRAM_TICKS = 5  # address of int64 [instructions]: ticks of share 0 in each, added up; or 0

# Slots of the table that `team_lead` and `team_work` get as their `instr`.
TEAM_PROGRAM = 2  # address of the program's table, set by the leader before each step
TEAM_CTX = 3  # address of the step's ctx, likewise
TEAM_STEP = 4  # address of the counter of steps
TEAM_NEXT = 5  # address of the counter of shares that were claimed
TEAM_DONE = 6  # address of the counter of shares that were done
TEAM_END = 7  # number of the share after the step's last one
TEAM_CLOSED = 8  # not 0: leave

# A counter is an int64, and the one after it how many threads sleep until it changes. Counters are
# so many int64 apart: two cache lines, as they are fetched.
LINE = 16


class Addresses(Protocol):
    """Where compiled kernels are: `loader.Kernels`."""

    def address(self, name: str) -> int:
        """Address of the kernel called `name`."""


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


def double_bits(value: float) -> int:
    """The bits of a float64 as an int64."""
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


def table(instructions: Sequence[Instruction | Table] | Table) -> Table:
    """Instructions as the array that `PROGRAM_FIRST` points to."""
    return np.array(instructions, np.int64).reshape(-1, INSTR_SLOTS)


def phase_starts(instructions: Table) -> Table:
    """Where each phase of a program begins, and where the last one ends."""
    bytes_each = 8 * INSTR_SLOTS
    return np.array(instructions.ctypes.data + bytes_each * _bounds(instructions), np.int64)


def phases(instructions: Table) -> list[Table]:
    """Split a program where its threads wait for each other; nothing is copied."""
    return [instructions[a:b] for a, b in itertools.pairwise(_bounds(instructions))]


def _bounds(instructions: Table) -> Table:
    ends = np.flatnonzero(instructions[:, 1]) + 1
    if not len(ends) or ends[-1] != len(instructions):
        ends = np.append(ends, len(instructions))
    return np.concatenate([[0], ends])
