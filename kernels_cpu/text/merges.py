"""Byte-pair encoding: symbols that are merged in the order of their ranks. For kernels.

Symbols are a list: of each int32 token, the one before it and the one after it, -1 for none. A heap
holds pairs that may be merged, the first of the lowest rank on top: of each int64 rank and place,
int32 both tokens and the one that they become. A merge offers two pairs and takes one symbol away,
so the heap never holds more than three for each symbol.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import (
    read_i32,
    read_i64,
    read_int,
    read_u8,
    write_i32,
    write_i64,
)
from edgetok.kernels_cpu.text.characters import (
    SIZE_BITS,
    SIZE_MASK,
    character,
    in_class,
    pair_at,
)
from edgetok.kernels_cpu.text.found import emit, have_bytes, of_byte, token_of
from edgetok.kernels_cpu.text.launch import (
    TAB_DIGIT_RANGES,
    TAB_MERGES,
    TOK_DIGIT_RANGES,
    TOK_FALLBACK,
    TOK_FUSE,
    TOK_IGNORE_MERGES,
    TOK_MERGES,
    TOK_PREPEND,
    TOK_SPACE,
    TOK_SPLIT_DIGITS,
    TOK_UNKNOWN,
)
from edgetok.kernels_cpu.text.words import word

_SYMBOL = 12  # bytes
_PAIR = 20
_BEFORE, _AFTER = 4, 8  # in a symbol
_LEFT, _RIGHT, _MADE = 8, 12, 16  # in a pair
_PLACES = 1 << 32  # more than there are symbols
MERGE_BYTES = _SYMBOL + 3 * _PAIR  # memory for each byte of a text, and for two more


@inline
def _copy_pair(to: int, pair: int) -> None:
    write_i64(to, read_i64(pair))
    write_i64(to + 8, read_i64(pair + 8))
    write_i32(to + 16, read_i32(pair + 16))


@outline
def _offer(t: int, symbols: int, heap: int, pairs: int, at: int) -> Any:
    """Put the pair that begins with a symbol on the heap, if it can be merged; returns its size."""
    if at < 0:
        return pairs
    left = symbols + _SYMBOL * at
    after = read_int(left + _AFTER)
    if after < 0:
        return pairs
    right = symbols + _SYMBOL * after
    rows, count = read_i64(t + 8 * TAB_MERGES), read_i64(t + 8 * TOK_MERGES)
    found = pair_at(rows, count, 4, read_int(left), read_int(right))
    if found == 0:
        return pairs
    key = read_int(found + 8) * _PLACES + at
    i = pairs
    while i > 0:
        above = (i - 1) >> 1
        if key >= read_i64(heap + _PAIR * above):
            break
        _copy_pair(heap + _PAIR * i, heap + _PAIR * above)
        i = above
    pair = heap + _PAIR * i
    write_i64(pair, key)
    write_i32(pair + _LEFT, read_i32(left))
    write_i32(pair + _RIGHT, read_i32(right))
    write_i32(pair + _MADE, read_i32(found + 12))
    return pairs + 1


@outline
def _drop_first(heap: int, pairs: int) -> Any:
    """Take the first pair off the heap; returns its size."""
    pairs -= 1
    last = heap + _PAIR * pairs
    key = read_i64(last)
    i = 0
    while 2 * i + 1 < pairs:
        child = 2 * i + 1
        if child + 1 < pairs:
            other = read_i64(heap + _PAIR * (child + 1))
            if other < read_i64(heap + _PAIR * child):
                child += 1
        if read_i64(heap + _PAIR * child) >= key:
            break
        _copy_pair(heap + _PAIR * i, heap + _PAIR * child)
        i = child
    _copy_pair(heap + _PAIR * i, last)
    return pairs


@outline
def _merge(e: int, t: int, symbols: int, heap: int, count: int) -> None:
    """Merge `count` symbols and emit what is left of them."""
    for i in range(count):
        write_i32(symbols + _SYMBOL * i + _BEFORE, np.int32(i - 1))
        write_i32(symbols + _SYMBOL * i + _AFTER, np.int32(i + 1 if i + 1 < count else -1))
    pairs = 0
    for i in range(count):
        pairs = _offer(t, symbols, heap, pairs, i)
    while pairs > 0:
        at = read_i64(heap) & (_PLACES - 1)
        wanted, other, made = (
            read_int(heap + _LEFT),
            read_int(heap + _RIGHT),
            read_int(heap + _MADE),
        )
        pairs = _drop_first(heap, pairs)
        left = symbols + _SYMBOL * at
        after = read_int(left + _AFTER)
        if read_int(left) != wanted or after < 0:
            continue
        right = symbols + _SYMBOL * after
        if read_int(right) != other:
            continue
        beyond = read_int(right + _AFTER)
        write_i32(left, np.int32(made))
        write_i32(right, np.int32(-1))
        write_i32(left + _AFTER, np.int32(beyond))
        if beyond >= 0:
            write_i32(symbols + _SYMBOL * beyond + _BEFORE, np.int32(at))
        pairs = _offer(t, symbols, heap, pairs, read_int(left + _BEFORE))
        pairs = _offer(t, symbols, heap, pairs, at)
    i = 0 if count > 0 else -1
    while i >= 0:
        emit(e, read_int(symbols + _SYMBOL * i))
        i = read_int(symbols + _SYMBOL * i + _AFTER)


@inline
def _heap_at(symbols: int, n: int) -> Any:
    return symbols + _SYMBOL * (n + 2)


@outline
def _byte_word(e: int, t: int, s: int, n: int, symbols: int, heap: int) -> None:
    if read_i64(t + 8 * TOK_IGNORE_MERGES) != 0:
        whole = token_of(t, s, n)
        if whole >= 0:
            emit(e, whole)
            return
    count = 0
    for i in range(n):  # as Hugging Face: what the vocabulary lacks is left out
        token = of_byte(t, read_u8(s + i))
        if token >= 0:
            write_i32(symbols + _SYMBOL * count, np.int32(token))
            count += 1
    _merge(e, t, symbols, heap, count)


@outline
def byte_level(e: int, t: int, s: int, n: int, memory: int) -> None:
    """Encode a text by the bytes of its words."""
    heap = _heap_at(memory, n)
    at = 0
    while at < n:
        end = n
        if read_i64(t + 8 * TOK_SPLIT_DIGITS) != 0:  # digits are words by themselves
            end = at
            while end < n:
                found = character(s + end)
                digit = in_class(t, TAB_DIGIT_RANGES, TOK_DIGIT_RANGES, found >> SIZE_BITS)
                if digit and end > at:
                    break
                end += found & SIZE_MASK
                if digit:
                    break
        while at < end:
            size = word(t, s + at, end - at)
            _byte_word(e, t, s + at, size, memory, heap)
            at += size


@outline
def sentencepiece(e: int, t: int, s: int, n: int, memory: int) -> Any:
    """Encode a text by characters: spaces become U+2581, what has no token its bytes or <unk>."""
    space, none = read_i64(t + 8 * TOK_SPACE), read_i64(t + 8 * TOK_UNKNOWN)
    count = 0
    unknown = 0
    if read_i64(t + 8 * TOK_PREPEND) != 0:
        write_i32(memory, np.int32(space))
        count = 1
    at = 0
    while at < n:
        found = character(s + at)
        size, c = found & SIZE_MASK, found >> SIZE_BITS
        token = space if c == 32 or c == 0x2581 else token_of(t, s + at, size)
        was = unknown
        unknown = 0
        if token >= 0:
            write_i32(memory + _SYMBOL * count, np.int32(token))
            count += 1
        elif read_i64(t + 8 * TOK_FALLBACK) != 0 and have_bytes(t, s + at, size) == 1:
            for i in range(size):
                write_i32(memory + _SYMBOL * count, np.int32(of_byte(t, read_u8(s + at + i))))
                count += 1
        else:
            unknown = 1
            if none >= 0 and (was == 0 or read_i64(t + 8 * TOK_FUSE) == 0):
                write_i32(memory + _SYMBOL * count, np.int32(none))
                count += 1
        at += size
    _merge(e, t, memory, _heap_at(memory, n), count)
