"""Tokens of a text: byte-level BPE, sentencepiece BPE and Unigram, as the `tokenizers` package.

Added tokens are found first, the longest of those that begin at a place; what is between them is
brought into normal form where the tokenizer does so, and encoded by itself. One thread does it all.
Slots and tables: `launch.py`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_int, read_u8, write_i64
from edgetok.kernels_cpu.text.characters import (
    SIZE_BITS,
    SIZE_MASK,
    character,
    compared,
    in_class,
    valid,
    within,
)
from edgetok.kernels_cpu.text.found import emit
from edgetok.kernels_cpu.text.launch import (
    ADDED_LSTRIP,
    ADDED_RSTRIP,
    ENCODE_BYTES,
    ENCODE_COUNT,
    ENCODE_NEEDED,
    ENCODE_POINTS,
    ENCODE_SCRATCH,
    ENCODE_SPECIAL,
    ENCODE_TABLES,
    ENCODE_TEXT,
    KIND_BYTES,
    KIND_UNIGRAM,
    TAB_ADDED,
    TAB_AFTER,
    TAB_BEFORE,
    TAB_SPACES,
    TAB_TEXT,
    TOK_ADDED,
    TOK_AFTER,
    TOK_BEFORE,
    TOK_KIND,
    TOK_SPACES,
)
from edgetok.kernels_cpu.text.merges import MERGE_BYTES, byte_level, sentencepiece
from edgetok.kernels_cpu.text.normal import POINT_BYTES, changes, count_points, normal_form
from edgetok.kernels_cpu.text.unigram import UNIGRAM_BYTES, unigram

_EACH_BYTES = max(MERGE_BYTES, UNIGRAM_BYTES)  # memory for each byte of a text
_MORE = 4  # bytes of a text, and points, that there is memory for besides
_MOST_BYTES = 4  # of a character


@outline
def _reserve(e: int, t: int) -> None:
    """Say how much memory a text needs, and where in it normal forms are made."""
    text, n = read_i64(e + 8 * ENCODE_TEXT), read_i64(e + 8 * ENCODE_BYTES)
    room = n
    points = 0
    if changes(t, text, n):
        # Slots of results are the memory here; they are written afterwards.
        points = count_points(t, text, n, e + 8 * ENCODE_COUNT)
        room = max(n, _MOST_BYTES * points)
    work = _EACH_BYTES * (room + _MORE)
    write_i64(e + 8 * ENCODE_POINTS, read_i64(e + 8 * ENCODE_SCRATCH) + work)
    write_i64(e + 8 * ENCODE_NEEDED, work + POINT_BYTES * (points + _MORE))
    write_i64(e + 8 * ENCODE_COUNT, 0)


@outline
def _plain(e: int, t: int, s: int, n: int) -> None:
    """Encode a text without added tokens."""
    if n == 0:
        return
    memory, points = read_i64(e + 8 * ENCODE_SCRATCH), read_i64(e + 8 * ENCODE_POINTS)
    if changes(t, s, n):
        out = points + 8 * (count_points(t, s, n, points) + _MORE)
        n = normal_form(t, s, n, points, out)
        s = out
    kind = read_i64(t + 8 * TOK_KIND)
    if n == 0:
        return
    if kind == KIND_UNIGRAM:
        unigram(e, t, s, n, memory)
    elif kind == KIND_BYTES:
        byte_level(e, t, s, n, memory)
    else:
        sentencepiece(e, t, s, n, memory)


@outline
def _added_at(t: int, s: int, n: int) -> Any:
    """Address of the row of the added token that a text begins with; 0 for none."""
    rows, text = read_i64(t + 8 * TAB_ADDED), read_i64(t + 8 * TAB_TEXT)
    first = read_u8(s)
    for i in range(read_i64(t + 8 * TOK_ADDED)):  # the longest first
        row = rows + 16 * i
        begin = read_int(row + 8)
        size = read_int(row + 12) - begin
        if within(size, 1, n) and read_u8(text + begin) == first:
            # Whole characters, so that what follows is text, whatever the table says.
            whole = size == n or read_u8(s + size) & 0xC0 != 0x80
            if whole and compared(text + begin, size, s, size) == 0:
                return row
    return 0


@outline
def _is_space(t: int, s: int) -> Any:
    return in_class(t, TAB_SPACES, TOK_SPACES, character(s) >> SIZE_BITS)


@outline
def _split(e: int, t: int, s: int, n: int) -> None:
    """Encode what is between added tokens, and these."""
    begin = 0
    at = 0
    while at < n:
        row = _added_at(t, s + at, n - at) if read_u8(s + at) & 0xC0 != 0x80 else 0
        if row == 0:
            at += 1
            continue
        end = at + read_int(row + 12) - read_int(row + 8)
        if read_int(row + 4) & ADDED_LSTRIP != 0:
            while at > begin:
                before = at - 1
                while before > begin and read_u8(s + before) & 0xC0 == 0x80:
                    before -= 1
                if not _is_space(t, s + before):
                    break
                at = before
        if read_int(row + 4) & ADDED_RSTRIP != 0:
            while end < n and _is_space(t, s + end):
                end += character(s + end) & SIZE_MASK
        _plain(e, t, s + begin, at - begin)
        emit(e, read_int(row))
        begin = end
        at = end
    _plain(e, t, s + begin, n - begin)


@outline
def _emit_all(e: int, ids: int, count: int) -> None:
    for i in range(count):
        emit(e, read_int(ids + 4 * i))


@kernel
def encode(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Write the tokens of a text, or say how much memory that takes."""
    t, special = read_i64(instr + 8 * ENCODE_TABLES), read_i64(instr + 8 * ENCODE_SPECIAL)
    text, n = read_i64(instr + 8 * ENCODE_TEXT), read_i64(instr + 8 * ENCODE_BYTES)
    if not valid(text, n):
        write_i64(instr + 8 * ENCODE_COUNT, -1)
        return
    _reserve(instr, t)
    if read_i64(instr + 8 * ENCODE_SCRATCH) == 0:
        return
    if special != 0:
        _emit_all(instr, read_i64(t + 8 * TAB_BEFORE), read_i64(t + 8 * TOK_BEFORE))
    _split(instr, t, text, n)
    if special != 0:
        _emit_all(instr, read_i64(t + 8 * TAB_AFTER), read_i64(t + 8 * TOK_AFTER))
