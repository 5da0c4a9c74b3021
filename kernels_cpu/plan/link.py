"""Kernels that give a plan that was checked its memory, and its instructions real addresses."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.cache.launch import R_BLOCK, R_ROPES, RUN
from edgetok.kernels_cpu.cache.tables import between, get, put
from edgetok.kernels_cpu.elementwise.launch import ANGLES_COS, ANGLES_POSITIONS, ANGLES_SIN
from edgetok.kernels_cpu.plan.launch import (
    H_BODY,
    H_INSTRUCTIONS,
    H_PLACES,
    H_RELOCATIONS,
    H_SIZES,
    H_TRUNK,
    HOST_ANGLES,
    NAME_BYTES,
    O_HEADER,
    O_HOST,
    O_INSTRUCTIONS,
    O_LOGITS,
    O_MEMORY,
    O_MOVES,
    O_NAME_COUNT,
    O_PLACES,
    O_POSITIONS,
    O_PROGRAMS,
    O_ROPES,
    O_ROWS,
    O_TABLE,
    O_TEAM,
    O_THREADS,
    O_TOKENS,
    OPEN_MEMORY,
    OPEN_PLAN,
    OPEN_RESULT,
    PLACE,
    PROGRAMS,
    ROPE,
    WHOLE,
    WRONG_INSTRUCTIONS,
    Section,
    Segment,
)
from edgetok.kernels_cpu.plan.read import run_number, section
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS, kernel
from edgetok.kernels_cpu.program.tables import (
    LINE,
    PROGRAM_FIRST,
    PROGRAM_PHASES,
    PROGRAM_STARTS,
    TEAM_DONE,
    TEAM_NEXT,
    TEAM_STEP,
)
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_int, write_i32

_INSTRUCTION_BYTES = 8 * INSTR_SLOTS
_MOST_ROWS = 1 << 24  # of a place
_VOCAB = RUN.index("vocab")
_ROPES, _HOST = int(Section.ROPES), int(Section.HOST)
_KERNELS, _TABLES, _WORKSPACE = (
    int(segment) for segment in (Segment.KERNELS, Segment.TABLES, Segment.WORKSPACE)
)
_ATTENTION, _LINEAR = int(Segment.ATTENTION), int(Segment.LINEAR)
_PLACE_BYTES = PLACE.size


def _words(name: str) -> tuple[int, int]:
    """The first 16 bytes of a place's name, as two numbers; the rest is 0."""
    content = name.encode().ljust(16, b"\0")
    return int.from_bytes(content[:8], "little"), int.from_bytes(content[8:], "little")


_TOKENS, _TOKENS_END = _words("tokens")
_POSITIONS, _POSITIONS_END = _words("positions")
_LOGITS, _LOGITS_END = _words("logits")
_COS, _COS_END = _words("cos.0")
_SIN, _SIN_END = _words("sin.0")
_NEXT_DIGIT = 1 << 32  # what the next rope's cos and sin are called


@outline
def _take(o: int, field: int, at: int, nbytes: int) -> Any:
    """Note an address, and return the next one."""
    put(o, field, at)
    return at + (nbytes + 127) // 64 * 64


@inline
def _starts_bytes(o: int) -> Any:
    """Bytes of the table of a program's phases."""
    return 8 * (get(get(o, O_HEADER), H_INSTRUCTIONS) + 2)


@kernel
def plan_place(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Give all that a run needs its place from OPEN_MEMORY on; the result is how many bytes."""
    o, base = get(instr, OPEN_PLAN), get(instr, OPEN_MEMORY)
    h = get(o, O_HEADER)
    ropes = run_number(o, R_ROPES)
    at = _take(o, O_TEAM, base, 8 * (INSTR_SLOTS + 3 * LINE))
    for segment in range(_TABLES, _LINEAR + 1):
        nbytes = get(h, H_SIZES + segment)
        if segment >= _ATTENTION:
            nbytes *= get(o, O_THREADS)
        at = _take(o, O_MEMORY + segment, at, nbytes)
    at = _take(o, O_MEMORY + _KERNELS, at, 8 * get(o, O_NAME_COUNT))
    at = _take(o, O_INSTRUCTIONS, at, _INSTRUCTION_BYTES * get(h, H_INSTRUCTIONS))
    at = _take(o, O_HOST, at, _INSTRUCTION_BYTES * (HOST_ANGLES + ropes))
    at = _take(o, O_PROGRAMS, at, PROGRAMS * (_INSTRUCTION_BYTES + _starts_bytes(o)))
    at = _take(o, O_ROPES, at, 8 * len(ROPE) * ropes)
    at = _take(o, O_ROWS, at, 4 * run_number(o, R_BLOCK))
    put(instr, OPEN_RESULT, at - base)


@outline
def _relocate(o: int) -> Any:
    """Copy the instructions and make addresses of offsets; whether all are inside."""
    h, to = get(o, O_HEADER), get(o, O_INSTRUCTIONS)
    count = INSTR_SLOTS * get(h, H_INSTRUCTIONS)
    for i in range(count):
        put(to, i, get(get(o, O_TABLE), i))
    kernels = 0
    before = -1
    for i in range(get(h, H_RELOCATIONS)):
        slot = read_int(get(o, O_MOVES) + 8 * i)
        segment = read_int(get(o, O_MOVES) + 8 * i + 4)
        if not between(slot, before + 1, count - 1) or not between(segment, _KERNELS, _LINEAR):
            return False
        place = slot % INSTR_SLOTS
        if place == 1 or (place == 0 and segment != _KERNELS):
            return False
        offset = get(to, slot)
        if not between(offset, 0, get(h, H_SIZES + segment) - 1):
            return False
        memory = get(o, O_MEMORY + segment)
        if segment == _KERNELS:  # experts name one that another calls
            put(to, slot, get(memory, offset))
            kernels += 1 if place == 0 else 0
        else:
            put(to, slot, memory + offset)
        before = slot
    return INSTR_SLOTS * kernels == count


@outline
def _address(o: int, name: int, end: int, rows: int, columns: int) -> Any:
    """Address of a place of at least so many rows; 0 where there is none, or it is outside."""
    h = get(o, O_HEADER)
    for i in range(get(h, H_PLACES)):
        p = get(o, O_PLACES) + _PLACE_BYTES * i
        if get(p, 0) != name or get(p, 1) != end or get(p, 2) != 0 or get(p, 3) != 0:
            continue
        segment, offset = read_int(p + 32), get(p, 5)
        if not between(segment, _TABLES, _WORKSPACE) or offset % 4 != 0:
            return 0
        if not between(get(p, 6), rows, _MOST_ROWS) or get(p, 7) != columns:
            return 0
        if not between(offset, 0, get(h, H_SIZES + segment) - 4 * get(p, 6) * columns):
            return 0
        return get(o, O_MEMORY + segment) + offset
    return 0


@outline
def _find_places(o: int) -> Any:
    """Find inputs and result of a step; whether they are there."""
    block = run_number(o, R_BLOCK)
    put(o, O_TOKENS, _address(o, _TOKENS, _TOKENS_END, 1, block))
    put(o, O_POSITIONS, _address(o, _POSITIONS, _POSITIONS_END, 1, block))
    put(o, O_LOGITS, _address(o, _LOGITS, _LOGITS_END, 1, run_number(o, _VOCAB)))
    return get(o, O_TOKENS) != 0 and get(o, O_POSITIONS) != 0 and get(o, O_LOGITS) != 0


@outline
def _link_host(o: int) -> Any:
    """Copy what the library calls itself but for its kernels; whether all ropes have places."""
    block, ropes = run_number(o, R_BLOCK), run_number(o, R_ROPES)
    for i in range(HOST_ANGLES + ropes):
        told = section(o, _HOST) + (NAME_BYTES + _INSTRUCTION_BYTES) * i + NAME_BYTES
        for slot in range(1, INSTR_SLOTS):
            put(get(o, O_HOST) + _INSTRUCTION_BYTES * i, slot, get(told, slot))
    at = section(o, _ROPES)
    for i in range(ropes):
        pairs = get(at, 0)
        rope = get(o, O_ROPES) + 8 * len(ROPE) * i
        one = get(o, O_HOST) + _INSTRUCTION_BYTES * (HOST_ANGLES + i)
        cos = _address(o, _COS + _NEXT_DIGIT * i, _COS_END, block, pairs)
        sin = _address(o, _SIN + _NEXT_DIGIT * i, _SIN_END, block, pairs)
        if cos == 0 or sin == 0:
            return False
        put(one, ANGLES_POSITIONS, get(o, O_POSITIONS))
        put(one, ANGLES_COS, cos)
        put(one, ANGLES_SIN, sin)
        put(rope, 0, pairs)
        put(rope, 1, get(at, 1))
        put(rope, 2, at + 16)
        put(rope, 3, at + 16 + 8 * pairs)
        at += 16 + 16 * pairs
    return True


@outline
def _write_program(o: int, number: int, count: int) -> None:
    """Write the table of the program of the first `count` instructions."""
    first = get(o, O_INSTRUCTIONS)
    program = get(o, O_PROGRAMS) + _INSTRUCTION_BYTES * number
    starts = get(o, O_PROGRAMS) + _INSTRUCTION_BYTES * PROGRAMS + _starts_bytes(o) * number
    phases = 0
    put(starts, 0, first)
    for i in range(count):
        if get(first + _INSTRUCTION_BYTES * i, 1) != 0 or i == count - 1:
            phases += 1
            put(starts, phases, first + _INSTRUCTION_BYTES * (i + 1))
    put(program, PROGRAM_FIRST, first)
    put(program, PROGRAM_STARTS, starts)
    put(program, PROGRAM_PHASES, phases)


@kernel
def plan_link(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Fill the memory that `plan_place` shared out; the result is the number of a fault.

    Addresses of kernels are there: in the segment KERNELS, and in HOST's first slots.
    """
    o = get(instr, OPEN_PLAN)
    h, team = get(o, O_HEADER), get(o, O_TEAM)
    fits = _relocate(o) and _find_places(o) and _link_host(o)
    put(instr, OPEN_RESULT, WHOLE if fits else WRONG_INSTRUCTIONS)
    if not fits:
        return
    _write_program(o, 0, get(h, H_INSTRUCTIONS))
    _write_program(o, 1, get(h, H_BODY))
    _write_program(o, 2, get(h, H_TRUNK))
    put(team, TEAM_STEP, team + 8 * INSTR_SLOTS)
    put(team, TEAM_NEXT, team + 8 * (INSTR_SLOTS + LINE))
    put(team, TEAM_DONE, team + 8 * (INSTR_SLOTS + 2 * LINE))
    for i in range(run_number(o, R_BLOCK)):
        write_i32(get(o, O_ROWS) + 4 * i, np.int32(i))
