"""Characters of UTF-8 and searches in tables. For kernels; nothing is registered here.

What is read has been checked: a character lies in the text as a whole.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.simd.emit import _I8, _store, i64, inline, op, outline, void
from edgetok.kernels_cpu.simd.memory import read_i64, read_int, read_u8

# `character` and `words._kind_at` return two numbers in one: the character's bytes in the low bits.
SIZE_BITS = 3
SIZE_MASK = 7


@op(void, i64, i64)
def write_u8(b: Any, address: Any, value: Any) -> None:
    """Store a byte."""
    _store(b, address, b.trunc(value, _I8))


@inline
def within(value: int, first: int, count: int) -> Any:
    """Whether a value is one of `count` from the first on."""
    return value >= first and value < first + count


@outline
def character(s: int) -> Any:
    """The character at address `s`, shifted by SIZE_BITS, and how many bytes it has."""
    first = read_u8(s)
    if first < 0x80:
        return first << 3 | 1
    if first < 0xE0:
        return ((first & 31) << 6 | (read_u8(s + 1) & 63)) << 3 | 2
    if first < 0xF0:
        two = (first & 15) << 6 | (read_u8(s + 1) & 63)
        return (two << 6 | (read_u8(s + 2) & 63)) << 3 | 3
    two = (first & 7) << 6 | (read_u8(s + 1) & 63)
    return ((two << 6 | (read_u8(s + 2) & 63)) << 6 | (read_u8(s + 3) & 63)) << 3 | 4


@outline
def length_of(lead: int) -> Any:
    """Bytes of the character that a byte begins; 0 for none."""
    if lead < 0x80:
        return 1
    if lead < 0xC2 or lead > 0xF4:
        return 0
    if lead < 0xE0:
        return 2
    return 3 if lead < 0xF0 else 4


@outline
def may_follow(lead: int, held: int, byte: int) -> Any:
    """Whether a byte may follow `held` others: no surrogates, nothing overlong."""
    low = 0x80
    high = 0xBF
    if held == 1:
        if lead == 0xE0:
            low = 0xA0
        if lead == 0xED:
            high = 0x9F
        if lead == 0xF0:
            low = 0x90
        if lead == 0xF4:
            high = 0x8F
    return low <= byte and byte <= high


@outline
def valid(s: int, n: int) -> Any:
    """Whether n bytes are whole characters."""
    at = 0
    while at < n:
        lead = read_u8(s + at)
        size = length_of(lead)
        if size == 0 or size > n - at:
            return False
        for i in range(1, size):
            if not may_follow(lead, i, read_u8(s + at + i)):
                return False
        at += size
    return True


@outline
def row_at(rows: int, count: int, width: int, a: int, b: int) -> Any:
    """The first row, of rows that ascend by two numbers, that is not below (a, b)."""
    low = 0
    high = count
    while low < high:
        middle = (low + high) >> 1
        at = rows + 4 * width * middle
        first = read_int(at)
        if first < a or (first == a and read_int(at + 4) < b):
            low = middle + 1
        else:
            high = middle
    return low


@outline
def pair_at(rows: int, count: int, width: int, a: int, b: int) -> Any:
    """Address of the row that begins with (a, b); 0 for none."""
    i = row_at(rows, count, width, a, b)
    at = rows + 4 * width * i
    if i < count and read_int(at) == a and read_int(at + 4) == b:
        return at
    return 0


@outline
def range_at(rows: int, count: int, width: int, c: int) -> Any:
    """Address of the row whose two numbers are the ends of a range that holds c; 0 for none."""
    i = row_at(rows, count, width, c + 1, 0) - 1  # the last that begins at c or before
    at = rows + 4 * width * i
    if i >= 0 and c <= read_int(at + 4):
        return at
    return 0


@inline
def in_class(t: int, table: int, count: int, c: int) -> Any:
    """Whether a character is in one of a tokenizer's lists of ranges."""
    return range_at(read_i64(t + 8 * table), read_i64(t + 8 * count), 2, c) != 0


@outline
def compared(a: int, n: int, b: int, m: int) -> Any:
    """Below 0 where n bytes at `a` come before m bytes at `b`, 0 where they are equal."""
    for i in range(min(n, m)):
        order = read_u8(a + i) - read_u8(b + i)
        if order != 0:
            return order
    return n - m


@inline
def is_mark(s: int, n: int) -> Any:
    """Whether a text begins with U+2581, which stands for a space."""
    return n >= 3 and read_u8(s) == 0xE2 and read_u8(s + 1) == 0x96 and read_u8(s + 2) == 0x81
