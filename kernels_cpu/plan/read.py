"""Kernels that check a plan: every number before it is used, but for what instructions say.

Whoever can write a plan with a hash that fits is trusted like whoever writes a program; damage, and
sections that contradict each other, are refused.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.cache.launch import (
    LAYER,
    R_BLOCK,
    R_KV_HEADS,
    R_LAYERS,
    R_ROPES,
    R_STATES,
    RUN,
    SIZE,
    STATE,
)
from edgetok.kernels_cpu.cache.tables import between, get, put
from edgetok.kernels_cpu.plan.launch import (
    CORE_VERSION,
    DAMAGED,
    DIGEST_BYTES,
    H_BLOCK,
    H_BODY,
    H_HEAD,
    H_INSTRUCTIONS,
    H_KERNEL_BYTES,
    H_NAMES,
    H_PLACES,
    H_RELOCATIONS,
    H_SIZES,
    H_TRUNK,
    H_VERSION,
    H_WEIGHTS,
    HASH_COUNT,
    HASH_DATA,
    HASH_OUT,
    HEADER,
    HOST_ANGLES,
    IDENTITY_BYTES,
    MAGIC,
    MISSING,
    NAME_BYTES,
    NO_PLAN,
    O_BYTES,
    O_DIGEST,
    O_EXPECTED,
    O_FILE,
    O_FILE_BYTES,
    O_FOUND,
    O_HEADER,
    O_MOVES,
    O_NAME_COUNT,
    O_NAMES,
    O_PLACES,
    O_RUN_LIMITS,
    O_SECTIONS,
    O_TABLE,
    O_WEIGHTS_BYTES,
    OPEN_MEMORY,
    OPEN_PLAN,
    OPEN_RESULT,
    OPTIONAL,
    OTHER_VERSION,
    OTHER_WEIGHTS,
    OUTSIDE,
    PLACE,
    TOO_SHORT,
    VERSION,
    WHOLE,
    WRONG_INSTRUCTIONS,
    WRONG_NAME,
    WRONG_NUMBERS,
    WRONG_PIECES,
    Section,
    Segment,
)
from edgetok.kernels_cpu.plan.sha256 import hash_bytes
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS, kernel
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8
from edgetok.kernels_cpu.text.characters import compared, within
from edgetok.kernels_cpu.text.launch import CONVERSATIONS, PIECES, PIECES_HEAD_BYTES

_MAGIC = int.from_bytes(MAGIC, "little")
_HEAD_BYTES = 32  # magic, version, number of sections, bytes of the core
_MOST_SECTIONS = 64
_SECTIONS, _OPTIONAL = len(Section), int(OPTIONAL)
_TEMPLATE = int(Section.TEMPLATE)
_PLAN, _RUN, _LAYERS, _ROPES, _HOST, _EOS, _FAMILY, _STATES, _WIDE, _SIZES, _IDENTITY = map(
    int, list(Section)[:OPTIONAL]
)
_MOST_PAIRS, _MOST_NAMES, _MOST_BLOCK = 4096, 1024, 4096
_MOST_ROWS = 1 << 20  # of a table in the section PLAN
_MOST_SEGMENT_BYTES = 1 << 40
_FIRST_SIZED, _LAST_SIZED = int(Segment.TABLES), int(Segment.LINEAR)
_HEADER_BYTES, _INSTRUCTION_BYTES = 8 * len(HEADER), 8 * INSTR_SLOTS
_PLACE_BYTES = PLACE.size
_RUN_BYTES, _EOS_COUNT = 8 * len(RUN), RUN.index("eos")
_LAYER_BYTES, _SIZE_BYTES, _STATE_BYTES = 8 * len(LAYER), 8 * len(SIZE), 8 * len(STATE)


@inline
def section(o: int, kind: int) -> Any:
    """Address of a section."""
    return get(o, O_SECTIONS + kind)


@inline
def section_bytes(o: int, kind: int) -> Any:
    """Bytes of a section."""
    return get(o, O_BYTES + kind)


@inline
def run_number(o: int, number: int) -> Any:
    """A number of the section RUN."""
    return get(section(o, _RUN), number)


@outline
def _take_section(o: int, entry: int, first: int, core: int) -> Any:
    """Note where a section is; whether it can be there."""
    kind, at, count = get(entry, 0), get(entry, 1), get(entry, 2)
    size = get(o, O_FILE_BYTES)
    if not between(kind, 0, _SECTIONS - 1) or not between(at, first, size) or at % 8 != 0:
        return False
    if not between(count, 0, size - at) or (kind < _OPTIONAL and at + count > core):
        return False
    if section(o, kind) != 0:
        return False
    put(o, O_SECTIONS + kind, get(o, O_FILE) + at)
    put(o, O_BYTES + kind, count)
    return True


@outline
def _sections(o: int, scratch: int) -> Any:
    """Find the sections; the number of a fault."""
    plan, size = get(o, O_FILE), get(o, O_FILE_BYTES)
    if size < _HEAD_BYTES or get(plan, 0) != _MAGIC:
        return NO_PLAN
    if get(plan, 1) != VERSION:
        put(o, O_FOUND, get(plan, 1))
        return OTHER_VERSION
    count, core = get(plan, 2), get(plan, 3)
    if not between(count, 0, _MOST_SECTIONS):
        return TOO_SHORT
    first = _HEAD_BYTES + 24 * count
    if not between(core, first, size - DIGEST_BYTES):
        return TOO_SHORT
    hash_bytes(plan, core, scratch)
    if compared(scratch, DIGEST_BYTES, plan + core, DIGEST_BYTES) != 0:
        return DAMAGED
    for i in range(count):
        if not _take_section(o, plan + _HEAD_BYTES + 24 * i, first, core):
            return OUTSIDE
    for kind in range(_OPTIONAL):
        if section(o, kind) == 0:
            put(o, O_FOUND, kind)
            return MISSING
    return WHOLE


@outline
def _ropes_fit(o: int) -> Any:
    at, left = section(o, _ROPES), section_bytes(o, _ROPES)
    for _ in range(run_number(o, R_ROPES)):
        if left < 16 or not between(get(at, 0), 1, _MOST_PAIRS):
            return False
        taken = 16 + 16 * get(at, 0)
        at += taken
        left -= taken
    return left >= 0


@outline
def _numbers_fit(o: int) -> Any:
    """Whether the sections about the model have the sizes and numbers that they can have."""
    if section_bytes(o, _RUN) != _RUN_BYTES:
        return False
    limits = get(o, O_RUN_LIMITS)
    for i in range(len(RUN)):
        if not between(run_number(o, i), get(limits, 2 * i), get(limits, 2 * i + 1)):
            return False
    layers = run_number(o, R_LAYERS)
    if section_bytes(o, _LAYERS) != _LAYER_BYTES * layers:
        return False
    if section_bytes(o, _SIZES) != _SIZE_BYTES * layers:
        return False
    if section_bytes(o, _STATES) != _STATE_BYTES * run_number(o, R_STATES):
        return False
    if section_bytes(o, _EOS) != 4 * run_number(o, _EOS_COUNT):
        return False
    family = section_bytes(o, _FAMILY)
    if family < 1 or read_u8(section(o, _FAMILY) + family - 1) != 0:
        return False
    if section_bytes(o, _IDENTITY) != IDENTITY_BYTES:
        return False
    wide = section_bytes(o, _WIDE)
    if wide == 0:
        put(o, O_SECTIONS + _WIDE, 0)
    return (wide == 0 or wide == run_number(o, R_KV_HEADS) * layers) and _ropes_fit(o)


@outline
def pieces_fit(t: int, nbytes: int) -> Any:
    """Whether a section has the pieces that it says."""
    left = nbytes - PIECES_HEAD_BYTES
    if left < 0:
        return False
    for i in range(CONVERSATIONS * PIECES):
        size = read_i64(t + 8 + 8 * (i // PIECES * (1 + PIECES) + 1 + i % PIECES))
        if size < 0 or size > left:
            return False
        left -= size
    return True


@outline
def _name_size(name: int, most: int) -> Any:
    """Bytes of a kernel's name, without the 0 that ends it; 0 where it is none."""
    for i in range(min(most, NAME_BYTES)):
        c = read_u8(name + i)
        if c == 0:
            return i
        if not within(c, 97, 26) and not within(c, 48, 10) and c != 95:
            return 0
    return 0


@outline
def _names_fit(o: int) -> Any:
    name, left = get(o, O_NAMES), get(get(o, O_HEADER), H_KERNEL_BYTES)
    for _ in range(get(o, O_NAME_COUNT)):
        size = _name_size(name, left)
        if size == 0:
            return False
        name += size + 1
        left -= size + 1
    for i in range(HOST_ANGLES + run_number(o, R_ROPES)):
        host = section(o, _HOST) + (NAME_BYTES + _INSTRUCTION_BYTES) * i
        if _name_size(host, NAME_BYTES) == 0:
            return False
    return True


@outline
def _header_fits(o: int, h: int) -> Any:
    """Whether the numbers at the beginning of the section PLAN can be."""
    count = get(h, H_INSTRUCTIONS)
    if get(h, H_VERSION) != CORE_VERSION or not between(count, 1, _MOST_ROWS):
        return False
    if not between(get(h, H_RELOCATIONS), 0, INSTR_SLOTS * count):
        return False
    if not between(get(h, H_PLACES), 0, _MOST_ROWS):
        return False
    if not between(get(h, H_KERNEL_BYTES), 1, _MOST_ROWS):
        return False
    if not between(get(h, H_NAMES), 1, _MOST_NAMES):
        return False
    if not between(get(h, H_BODY), 1, count - 1) or not between(get(h, H_TRUNK), 1, get(h, H_BODY)):
        return False
    if not between(get(h, H_HEAD), 1, _MOST_BLOCK):
        return False
    if get(h, H_BLOCK) != run_number(o, R_BLOCK):
        return False
    for segment in range(_FIRST_SIZED, _LAST_SIZED + 1):
        if not between(get(h, H_SIZES + segment), 0, _MOST_SEGMENT_BYTES):
            return False
    return True


@outline
def _instructions(o: int) -> Any:
    """Find the parts of the section PLAN; the number of a fault."""
    at, left = section(o, _PLAN) + 8, section_bytes(o, _PLAN) - 8  # its own magic
    if left < _HEADER_BYTES + DIGEST_BYTES or not _header_fits(o, at):
        return WRONG_INSTRUCTIONS
    h = at
    if get(h, H_WEIGHTS) != get(o, O_WEIGHTS_BYTES):
        put(o, O_FOUND, get(o, O_WEIGHTS_BYTES))
        put(o, O_EXPECTED, get(h, H_WEIGHTS))
        return OTHER_WEIGHTS
    put(o, O_HEADER, h)
    put(o, O_DIGEST, h + _HEADER_BYTES)
    put(o, O_TABLE, h + _HEADER_BYTES + DIGEST_BYTES)
    put(o, O_MOVES, get(o, O_TABLE) + _INSTRUCTION_BYTES * get(h, H_INSTRUCTIONS))
    put(o, O_PLACES, get(o, O_MOVES) + 8 * get(h, H_RELOCATIONS))
    put(o, O_NAMES, get(o, O_PLACES) + _PLACE_BYTES * get(h, H_PLACES))
    put(o, O_NAME_COUNT, get(h, H_NAMES))
    if get(o, O_NAMES) + get(h, H_KERNEL_BYTES) - at > left:
        return WRONG_INSTRUCTIONS
    hosts = HOST_ANGLES + run_number(o, R_ROPES)
    if section_bytes(o, _HOST) < (NAME_BYTES + _INSTRUCTION_BYTES) * hosts:
        return WRONG_NUMBERS
    return WHOLE if _names_fit(o) else WRONG_NAME


@kernel
def plan_read(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Check a plan and note where its parts are; the result is the number of a fault."""
    o = get(instr, OPEN_PLAN)
    fault = _sections(o, get(instr, OPEN_MEMORY))
    if fault == WHOLE and not _numbers_fit(o):
        fault = WRONG_NUMBERS
    template = section_bytes(o, _TEMPLATE)
    if fault == WHOLE and template > 0 and not pieces_fit(section(o, _TEMPLATE), template):
        fault = WRONG_PIECES
    if fault == WHOLE:
        fault = _instructions(o)
    put(instr, OPEN_RESULT, fault)


@kernel
def sha256(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Write the hash of HASH_COUNT bytes, as of weights."""
    hash_bytes(get(instr, HASH_DATA), get(instr, HASH_COUNT), get(instr, HASH_OUT))
