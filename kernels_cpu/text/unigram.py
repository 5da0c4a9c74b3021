"""SentencePiece's unigram model: the pieces of a text with the greatest sum of scores. For kernels.

Found by Viterbi's algorithm, as the `tokenizers` package does. Source: arXiv 1808.06226. Of each
place between bytes there are the best sum (float64), its last piece, where that begins and, in the
end, where the next one ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import (
    read_f64,
    read_i64,
    read_int,
    read_u8,
    write_f64,
    write_i32,
)
from edgetok.kernels_cpu.text.characters import (
    SIZE_MASK,
    character,
    is_mark,
    write_u8,
)
from edgetok.kernels_cpu.text.found import emit, have_bytes, of_byte
from edgetok.kernels_cpu.text.launch import (
    ENCODE_TEXT,
    METASPACE_ALWAYS,
    METASPACE_FIRST,
    TAB_BEGINS,
    TAB_PIECES,
    TAB_SCORES,
    TAB_TEXT,
    TOK_FALLBACK,
    TOK_METASPACE,
    TOK_PIECES,
    TOK_PREPEND,
    TOK_SPLIT_WORDS,
    TOK_UNKNOWN,
)

_NODE = 20  # bytes
_TOKEN, _FROM, _NEXT = 8, 12, 16  # in a node, after its sum
_MARK_BYTES = 3
UNIGRAM_BYTES = 3 * (_NODE + 1)  # memory for each byte of a text, and for three more


@outline
def _piece_byte(t: int, i: int, depth: int) -> Any:
    """A byte of a piece's spelling; -1 behind its end."""
    begins = read_i64(t + 8 * TAB_BEGINS) + 4 * i
    at = read_int(begins) + depth
    return read_u8(read_i64(t + 8 * TAB_TEXT) + at) if at < read_int(begins + 4) else -1


@outline
def _bound(t: int, low: int, high: int, depth: int, byte: int) -> Any:
    """The first of pieces low to high, which agree in `depth` bytes, with at least `byte` there."""
    while low < high:
        middle = (low + high) >> 1
        if _piece_byte(t, middle, depth) < byte:
            low = middle + 1
        else:
            high = middle
    return low


@outline
def _offer(nodes: int, begin: int, end: int, score: float, token: int) -> None:
    """Take a piece where it gives more than what was found, or nothing was."""
    node = nodes + _NODE * end
    total = read_f64(nodes + _NODE * begin) + score
    if read_int(node + _FROM) < 0 or total > read_f64(node):
        write_f64(node, total)
        write_i32(node + _TOKEN, np.int32(token))
        write_i32(node + _FROM, np.int32(begin))


@outline
def _unknown(e: int, t: int, s: int, n: int) -> None:
    """Encode text that is no piece of the model: as the piece spelled so, as bytes, or <unk>."""
    low = 0
    high = read_i64(t + 8 * TOK_PIECES)
    for i in range(n):
        if low < high:
            byte = read_u8(s + i)
            low = _bound(t, low, high, i, byte)
            high = _bound(t, low, high, i, byte + 1)
    if low < high and _piece_byte(t, low, n) < 0:
        emit(e, read_int(read_i64(t + 8 * TAB_PIECES) + 4 * low))
    elif read_i64(t + 8 * TOK_FALLBACK) != 0 and have_bytes(t, s, n) == 1:
        for i in range(n):
            emit(e, of_byte(t, read_u8(s + i)))
    else:
        emit(e, read_i64(t + 8 * TOK_UNKNOWN))


@outline
def _find(t: int, nodes: int, s: int, n: int) -> None:
    """Find the best pieces of a word."""
    none = read_i64(t + 8 * TOK_UNKNOWN)
    count = read_i64(t + 8 * TOK_PIECES)
    scores = read_i64(t + 8 * TAB_SCORES)
    ids = read_i64(t + 8 * TAB_PIECES)
    for i in range(n + 1):
        write_f64(nodes + _NODE * i, 0.0)
        write_i32(nodes + _NODE * i + _TOKEN, np.int32(none))
        write_i32(nodes + _NODE * i + _FROM, np.int32(-1))
    at = 0
    while at < n:
        size = character(s + at) & SIZE_MASK
        low = 0
        high = count
        single = 0
        for depth in range(n - at):
            byte = read_u8(s + at + depth)
            low = _bound(t, low, high, depth, byte)
            high = _bound(t, low, high, depth, byte + 1)
            if low == high:
                break
            if _piece_byte(t, low, depth + 1) < 0:
                _offer(
                    nodes, at, at + depth + 1, read_f64(scores + 8 * low), read_int(ids + 4 * low)
                )
                if depth + 1 == size:
                    single = 1
        if single == 0:
            _offer(nodes, at, at + size, read_f64(scores + 8 * count), none)
        at += size


@outline
def _word(e: int, t: int, nodes: int, s: int, n: int) -> None:
    none = read_i64(t + 8 * TOK_UNKNOWN)
    _find(t, nodes, s, n)
    end = n
    while end > 0:
        begin = read_int(nodes + _NODE * end + _FROM)
        write_i32(nodes + _NODE * begin + _NEXT, np.int32(end))
        end = begin
    at = 0
    while at < n:
        end = read_int(nodes + _NODE * at + _NEXT)
        token = read_int(nodes + _NODE * end + _TOKEN)
        if token != none:
            emit(e, token)
        else:
            while end < n:  # one after the other is one
                after = read_int(nodes + _NODE * end + _NEXT)
                if read_int(nodes + _NODE * after + _TOKEN) != none:
                    break
                end = after
            _unknown(e, t, s + at, end - at)
        at = end


@inline
def _put_mark(to: int) -> Any:
    """Write U+2581; returns where it ends."""
    write_u8(to, 0xE2)
    write_u8(to + 1, 0x96)
    write_u8(to + 2, 0x81)
    return to + _MARK_BYTES


@outline
def unigram(e: int, t: int, s: int, n: int, memory: int) -> Any:
    """Encode a text without added tokens."""
    text = memory + _NODE * (3 * n + 7)
    end = text
    scheme = read_i64(t + 8 * TOK_METASPACE)
    first = scheme == METASPACE_ALWAYS or (
        scheme == METASPACE_FIRST and s == read_i64(e + 8 * ENCODE_TEXT)
    )
    marked = read_u8(s) == 32 or is_mark(s, n)
    if read_i64(t + 8 * TOK_PREPEND) != 0 or (first and not marked):
        end = _put_mark(end)
    for i in range(n):
        byte = read_u8(s + i)
        if byte == 32:
            end = _put_mark(end)
        else:
            write_u8(end, byte)
            end += 1
    made = end - text
    at = 0
    while at < made:  # a word begins with its space
        stop = made
        if read_i64(t + 8 * TOK_SPLIT_WORDS) != 0:
            stop = at + 1
            while stop < made and not is_mark(text + stop, made - stop):
                stop += 1
        _word(e, t, memory, text + at, stop - at)
        at = stop
