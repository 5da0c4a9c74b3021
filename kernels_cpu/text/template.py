"""Conversations as text: the pieces that a chat template writes around messages.

Found and checked by `edgetok/native/template.py`. Slots: `launch.py`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8, write_i64
from edgetok.kernels_cpu.text.characters import SIZE_BITS, SIZE_MASK, character, valid, within
from edgetok.kernels_cpu.text.json_write import copied
from edgetok.kernels_cpu.text.launch import (
    PIECE_ASSISTANT_TO_USER,
    PIECE_FIRST,
    PIECE_GENERATE,
    PIECE_SYSTEM_TO_USER,
    PIECE_USER_TO_ASSISTANT,
    PIECES,
    PIECES_HEAD_BYTES,
    RENDER_COUNT,
    RENDER_MESSAGES,
    RENDER_OUT,
    RENDER_RESULT,
    RENDER_TEMPLATE,
    RENDER_TEXTS,
    STRIPS,
    STRIPS_SYSTEM,
)


@outline
def _is_space(c: int) -> Any:
    """Whether Python's `str.isspace` says so of a character."""
    if c < 0x80:
        return within(c, 9, 5) or within(c, 28, 5)
    if c < 0x2000:
        return c == 0x85 or c == 0xA0 or c == 0x1680
    if c <= 0x200A or c == 0x2028 or c == 0x2029 or c == 0x202F:
        return True
    return c == 0x205F or c == 0x3000


@outline
def _strip_begin(s: int, end: int) -> Any:
    """Where a text without the spaces before it begins."""
    while s < end and _is_space(character(s) >> SIZE_BITS):
        s += character(s) & SIZE_MASK
    return s


@outline
def _strip_end(s: int, end: int) -> Any:
    """Where a text without the spaces after it ends."""
    while end > s:
        last = end - 1
        while last > s and read_u8(last) & 0xC0 == 0x80:
            last -= 1
        if not _is_space(character(last) >> SIZE_BITS):
            break
        end = last
    return end


@outline
def _added(out: int, at: int, s: int, n: int) -> Any:
    """Bytes of the text with `n` more, which are written where there is room for it."""
    if out != 0:
        copied(out + at, s, n)
    return at + n


@outline
def _add_piece(t: int, kind: int, which: int, out: int, at: int) -> Any:
    """Add a piece of the template."""
    begin = t + PIECES_HEAD_BYTES
    sizes = t + 8
    for i in range(kind * PIECES + which):
        begin += read_i64(sizes + 8 * (i // PIECES * (1 + PIECES) + 1 + i % PIECES))
    return _added(out, at, begin, read_i64(sizes + 8 * (kind * (1 + PIECES) + 1 + which)))


@outline
def _add_message(instr: int, i: int, strips: int, at: int) -> Any:
    """Add a message; one that is not UTF-8 keeps its spaces."""
    message = read_i64(instr + 8 * RENDER_MESSAGES) + 16 * i
    begin = read_i64(instr + 8 * RENDER_TEXTS) + read_i64(message)
    end = begin + read_i64(message + 8)
    if strips != 0 and valid(begin, end - begin):
        begin = _strip_begin(begin, end)
        end = _strip_end(begin, end)
    return _added(read_i64(instr + 8 * RENDER_OUT), at, begin, end - begin)


@outline
def _rendered(instr: int, t: int, count: int) -> Any:
    """Write a conversation up to where the assistant begins; bytes of it, or -1."""
    kind = 1 if read_i64(read_i64(instr + 8 * RENDER_MESSAGES) + 8) >= 0 else 0
    if read_i64(t + 8 + 8 * kind * (1 + PIECES)) == 0:
        return -1
    strips, out = read_i64(t), read_i64(instr + 8 * RENDER_OUT)
    at = _add_piece(t, kind, PIECE_FIRST, out, 0)
    if kind == 1:
        at = _add_message(instr, 0, strips & STRIPS_SYSTEM, at)
        at = _add_piece(t, kind, PIECE_SYSTEM_TO_USER, out, at)
    for i in range(1, count):
        if i > 1:
            between = PIECE_ASSISTANT_TO_USER if i % 2 == 1 else PIECE_USER_TO_ASSISTANT
            at = _add_piece(t, kind, between, out, at)
        at = _add_message(instr, i, strips & STRIPS, at)
    return _add_piece(t, kind, PIECE_GENERATE, out, at)


@kernel
def render(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Write a conversation."""
    t, count = read_i64(instr + 8 * RENDER_TEMPLATE), read_i64(instr + 8 * RENDER_COUNT)
    write_i64(instr + 8 * RENDER_RESULT, _rendered(instr, t, count))
