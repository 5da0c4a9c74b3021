"""Text of tokens as they arrive: whole characters, up to the first stop text.

As `edgetok/text/detokenizer.py` and `stop.py`: bytes that are no character become U+FFFD; special
tokens give no text, but a stop text may name them. Slots: `launch.py`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8, write_i64
from edgetok.kernels_cpu.text.characters import (
    compared,
    length_of,
    may_follow,
    write_u8,
)
from edgetok.kernels_cpu.text.launch import (
    TOKEN_SPECIAL,
    TOKEN_TEXT,
    WRITE_BUFFER,
    WRITE_BYTES,
    WRITE_CHARACTER,
    WRITE_FLAGS,
    WRITE_FOUND,
    WRITE_HELD,
    WRITE_MADE,
    WRITE_PART,
    WRITE_PIECE,
    WRITE_REST,
    WRITE_ROOM,
    WRITE_STOP_COUNT,
    WRITE_STOPS,
    WRITE_STRIP,
)

_NO_CHARACTER = (0xEF, 0xBF, 0xBD)  # U+FFFD


@outline
def _copy(to: int, s: int, n: int) -> None:
    for i in range(n):
        write_u8(to + i, read_u8(s + i))


@outline
def _give(w: int, s: int, n: int, to: int) -> Any:
    """Write a character's bytes, but for a first space; returns where they end."""
    if read_i64(w + 8 * WRITE_STRIP) != 0:
        write_i64(w + 8 * WRITE_STRIP, 0)
        if read_u8(s) == 32:
            return to
    _copy(to, s, n)
    return to + n


@outline
def _end_character(w: int, to: int) -> Any:
    """Give up a character that is not whole; returns where its stand-in ends."""
    if read_i64(w + 8 * WRITE_PART) == 0:
        return to
    write_i64(w + 8 * WRITE_PART, 0)
    write_i64(w + 8 * WRITE_STRIP, 0)
    write_u8(to, _NO_CHARACTER[0])
    write_u8(to + 1, _NO_CHARACTER[1])
    write_u8(to + 2, _NO_CHARACTER[2])
    return to + 3


@outline
def _characters(w: int, s: int, n: int, to: int) -> Any:
    """Write what of n bytes more is whole characters; returns where it ends."""
    held = w + 8 * WRITE_CHARACTER
    for i in range(n):
        byte = read_u8(s + i)
        part = read_i64(w + 8 * WRITE_PART)
        if part > 0 and not may_follow(read_u8(held), part, byte):
            to = _end_character(w, to)
            part = 0
        write_u8(held + part, byte)
        write_i64(w + 8 * WRITE_PART, part + 1)
        size = length_of(read_u8(held))
        if size == 0:
            to = _end_character(w, to)
        elif part + 1 == size:
            write_i64(w + 8 * WRITE_PART, 0)
            to = _give(w, held, size, to)
    return to


@inline
def _text_end(w: int) -> Any:
    buffer, room = read_i64(w + 8 * WRITE_BUFFER), read_i64(w + 8 * WRITE_ROOM)
    return buffer + 3 * room + read_i64(w + 8 * WRITE_MADE)


@outline
def _show(w: int, count: int) -> None:
    """Take the first bytes that are held back, and show those that are not hidden."""
    text, room = read_i64(w + 8 * WRITE_BUFFER), read_i64(w + 8 * WRITE_ROOM)
    hidden = text + room
    to = _text_end(w)
    made = 0
    for i in range(count):
        if read_u8(hidden + i) == 0:
            write_u8(to + made, read_u8(text + i))
            made += 1
    write_i64(w + 8 * WRITE_MADE, read_i64(w + 8 * WRITE_MADE) + made)
    left = read_i64(w + 8 * WRITE_HELD) - count
    for i in range(left):
        write_u8(text + i, read_u8(text + count + i))
        write_u8(hidden + i, read_u8(hidden + count + i))
    write_i64(w + 8 * WRITE_HELD, left)


@outline
def _first_stop(w: int) -> Any:
    """Where the first stop text begins in what is held back; -1 for none."""
    text, n = read_i64(w + 8 * WRITE_BUFFER), read_i64(w + 8 * WRITE_HELD)
    stops = read_i64(w + 8 * WRITE_STOPS)
    first = -1
    for k in range(read_i64(w + 8 * WRITE_STOP_COUNT)):
        stop, size = read_i64(stops + 16 * k), read_i64(stops + 16 * k + 8)
        for at in range(n - size + 1 if first < 0 else min(first, n - size + 1)):
            if compared(text + at, size, stop, size) == 0:
                first = at
                break
    return first


@outline
def _overlap(w: int) -> Any:
    """Bytes at the end of what is held back that may begin a stop text."""
    text, n = read_i64(w + 8 * WRITE_BUFFER), read_i64(w + 8 * WRITE_HELD)
    stops = read_i64(w + 8 * WRITE_STOPS)
    keep = 0
    for k in range(read_i64(w + 8 * WRITE_STOP_COUNT)):
        stop, size = read_i64(stops + 16 * k), read_i64(stops + 16 * k + 8)
        for more in range(min(size - 1, n), keep, -1):
            if compared(text + n - more, more, stop, more) == 0:
                keep = more
                break
    return keep


@outline
def _push(w: int, s: int, n: int, hide: int) -> None:
    """Add text, and show what can no longer be part of a stop text."""
    if read_i64(w + 8 * WRITE_FOUND) != 0:
        return
    if read_i64(w + 8 * WRITE_STOP_COUNT) == 0:
        if hide == 0:
            _copy(_text_end(w), s, n)
            write_i64(w + 8 * WRITE_MADE, read_i64(w + 8 * WRITE_MADE) + n)
        return
    held, room = read_i64(w + 8 * WRITE_HELD), read_i64(w + 8 * WRITE_ROOM)
    text = read_i64(w + 8 * WRITE_BUFFER)
    n = min(n, room - held)  # there is room, see WRITE_ROOM
    _copy(text + held, s, n)
    for i in range(n):
        write_u8(text + room + held + i, hide)
    write_i64(w + 8 * WRITE_HELD, held + n)
    first = _first_stop(w)
    if first < 0:
        _show(w, held + n - _overlap(w))
    else:
        _show(w, first)
        write_i64(w + 8 * WRITE_HELD, 0)
        write_i64(w + 8 * WRITE_FOUND, 1)


@kernel
def write_token(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Append the text that a token ends to WRITE_MADE bytes."""
    piece, n = read_i64(instr + 8 * WRITE_PIECE), read_i64(instr + 8 * WRITE_BYTES)
    flags, rest = read_i64(instr + 8 * WRITE_FLAGS), read_i64(instr + 8 * WRITE_REST)
    raw = read_i64(instr + 8 * WRITE_BUFFER) + 2 * read_i64(instr + 8 * WRITE_ROOM)
    end = raw
    special = flags & TOKEN_SPECIAL
    # Whole characters end one that bytes before them left incomplete.
    if rest != 0 or (special == 0 and flags & TOKEN_TEXT != 0):
        end = _end_character(instr, end)
    if special == 0:
        end = _characters(instr, piece, n, end)
    _push(instr, raw, end - raw, 0)
    if special != 0:
        _push(instr, piece, n, 1)
    if rest != 0:
        _show(instr, read_i64(instr + 8 * WRITE_HELD))
