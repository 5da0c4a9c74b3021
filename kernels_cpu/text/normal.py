"""Unicode's normal form C of a text, by the tokenizer's tables (UAX 15). For kernels.

Hangul is computed. A point is an int64: class, place and character, so that marks are sorted by
their classes and equal ones keep their order.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.elementwise.selection import sort_i64
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_int, read_u8, write_i64
from edgetok.kernels_cpu.text.characters import (
    SIZE_BITS,
    SIZE_MASK,
    character,
    in_class,
    pair_at,
    range_at,
    row_at,
    within,
    write_u8,
)
from edgetok.kernels_cpu.text.launch import (
    TAB_CLASSES,
    TAB_COMPOSITIONS,
    TAB_DECOMPOSITIONS,
    TAB_UNSTABLE,
    TOK_CLASSES,
    TOK_COMPOSITIONS,
    TOK_DECOMPOSITIONS,
    TOK_UNSTABLE,
)

# Hangul: leading consonants, vowels, trailing consonants (the first stands for none), syllables.
_LEADING, _VOWEL, _TRAILING, _SYLLABLE = 0x1100, 0x1161, 0x11A7, 0xAC00
_LEADINGS, _VOWELS, _TRAILINGS = 19, 21, 28
_SYLLABLES = _LEADINGS * _VOWELS * _TRAILINGS
_FEWEST = 0xCC  # below U+0300, whose lead byte this is, nothing changes
_CODE_BITS, _CLASS_AT = 21, 54
_MOST_PARTS = 4
POINT_BYTES = 12  # memory for each point: itself, and its character in UTF-8


@outline
def changes(t: int, s: int, n: int) -> Any:
    """Whether a text may be in another normal form."""
    if read_i64(t + 8 * TOK_UNSTABLE) == 0:
        return False
    at = 0
    while at < n and read_u8(s + at) < _FEWEST:
        at += 1
    while at < n and read_u8(s + at) & 0xC0 == 0x80:
        at += 1
    while at < n:
        found = character(s + at)
        if in_class(t, TAB_UNSTABLE, TOK_UNSTABLE, found >> SIZE_BITS):
            return True
        at += found & SIZE_MASK
    return False


@outline
def _decompose(t: int, c: int, out: int) -> Any:
    """Write the characters that one stands for, at most 4; returns how many."""
    i = c - _SYLLABLE
    if within(i, 0, _SYLLABLES):
        write_i64(out, _LEADING + i // (_VOWELS * _TRAILINGS))
        write_i64(out + 8, _VOWEL + i // _TRAILINGS % _VOWELS)
        write_i64(out + 16, _TRAILING + i % _TRAILINGS)
        return 3 if i % _TRAILINGS > 0 else 2
    rows, count = read_i64(t + 8 * TAB_DECOMPOSITIONS), read_i64(t + 8 * TOK_DECOMPOSITIONS)
    row = row_at(rows, count, 5, c, 0)
    at = rows + 20 * row
    write_i64(out, c)
    if row == count or read_int(at) != c:
        return 1
    made = 0
    while made < _MOST_PARTS and read_int(at + 4 + 4 * made) != 0:
        write_i64(out + 8 * made, read_int(at + 4 + 4 * made))
        made += 1
    return made


@outline
def _compose(t: int, a: int, b: int) -> Any:
    """The character that two become; 0 for none."""
    if within(a, _LEADING, _LEADINGS) and within(b, _VOWEL, _VOWELS):
        return _SYLLABLE + ((a - _LEADING) * _VOWELS + b - _VOWEL) * _TRAILINGS
    i = a - _SYLLABLE
    open_syllable = within(i, 0, _SYLLABLES) and i % _TRAILINGS == 0
    if open_syllable and within(b, _TRAILING + 1, _TRAILINGS - 1):
        return a + b - _TRAILING
    rows, count = read_i64(t + 8 * TAB_COMPOSITIONS), read_i64(t + 8 * TOK_COMPOSITIONS)
    found = pair_at(rows, count, 3, a, b)
    return read_int(found + 8) if found != 0 else 0


@outline
def _class_of(t: int, c: int) -> Any:
    """The canonical combining class of a character."""
    rows, count = read_i64(t + 8 * TAB_CLASSES), read_i64(t + 8 * TOK_CLASSES)
    found = range_at(rows, count, 3, c)
    return read_int(found + 8) & 255 if found != 0 else 0


@outline
def count_points(t: int, s: int, n: int, memory: int) -> Any:
    """How many characters a text has when it is decomposed; `memory` is int64 [4]."""
    count = 0
    at = 0
    while at < n:
        found = character(s + at)
        count += _decompose(t, found >> SIZE_BITS, memory)
        at += found & SIZE_MASK
    return count


@outline
def _put_utf8(c: int, to: int) -> Any:
    """Write a character; returns where it ends."""
    if c < 0x80:
        write_u8(to, c)
        return to + 1
    more = 1
    lead = 0xC0
    if c >= 0x10000:
        more = 3
        lead = 0xF0
    elif c >= 0x800:
        more = 2
        lead = 0xE0
    for i in range(more):
        write_u8(to + more - i, 0x80 | (c >> (6 * i) & 63))
    write_u8(to, lead | c >> (6 * more))
    return to + more + 1


@outline
def _sorted_points(t: int, s: int, n: int, points: int) -> Any:
    """Decompose a text, marks in the order of their classes; returns how many points there are."""
    count = 0
    run = 0  # where the marks behind the last starter begin
    at = 0
    while at < n:
        found = character(s + at)
        size = _decompose(t, found >> SIZE_BITS, points + 8 * count)
        for i in range(count, count + size):
            c = read_i64(points + 8 * i)
            own = _class_of(t, c)
            if own == 0:
                if i > run + 1:
                    sort_i64(points + 8 * run, i - run)
                run = i + 1
            write_i64(points + 8 * i, own << _CLASS_AT | i << _CODE_BITS | c)
        count += size
        at += found & SIZE_MASK
    if count > run + 1:
        sort_i64(points + 8 * run, count - run)
    return count


@outline
def normal_form(t: int, s: int, n: int, points: int, out: int) -> Any:
    """Write a text in normal form C to `out`.

    Args:
        t: the tokenizer.
        s: address of the text.
        n: its bytes.
        points: int64, as many as `count_points` says and 4 more.
        out: 4 bytes for each point.

    Returns:
        Bytes that were written.
    """
    count = _sorted_points(t, s, n, points)
    kept = 0
    starter = -1
    last = 0
    for i in range(count):  # a mark joins its starter unless one of its class or higher is between
        point = read_i64(points + 8 * i)
        c = point & ((1 << _CODE_BITS) - 1)
        own = point >> _CLASS_AT
        both = 0
        if starter >= 0 and (kept == starter + 1 or last < own):
            both = _compose(t, read_i64(points + 8 * starter), c)
        if both > 0:
            write_i64(points + 8 * starter, both)
        else:
            if own == 0:
                starter = kept
            last = own
            write_i64(points + 8 * kept, c)
            kept += 1
    end = out
    for i in range(kept):
        end = _put_utf8(read_i64(points + 8 * i), end)
    return end - out
