"""Find values in JSON, without building anything. For kernels; nothing is registered here.

Addresses `at` and `end` are those of a text and of its end; 0 stands for what is not JSON. Keys of
at most 8 bytes are numbers: `key_number`.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_u8, write_i64
from edgetok.kernels_cpu.text.characters import within, write_u8

_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE = b"[]{}"
# Of a pair: addresses and bytes of its key and of its value.
KEY, KEY_BYTES, VALUE, VALUE_BYTES = range(4)
_SHORTEST_HIGH, _SHORTEST_LOW, _HALVES = 0xD800, 0xDC00, 0x400


def key_number(name: str) -> int:
    """A key as kernels compare it: its bytes, the first one lowest."""
    assert len(name) <= 8
    return int.from_bytes(name.encode(), "little")


@outline
def number_of(s: int, n: int) -> Any:
    """The key of n bytes at `s` as a number; -1 where it has more than 8."""
    if n > 8:
        return -1
    found = 0
    for i in range(n):
        found |= read_u8(s + i) << 8 * i
    return found


@outline
def skip_space(at: int, end: int) -> Any:
    """The address of the next character that is none of JSON's spaces."""
    while at < end and (read_u8(at) == 32 or within(read_u8(at), 9, 2) or read_u8(at) == 13):
        at += 1
    return at


@outline
def starts(at: int, end: int, c: int) -> Any:
    """Whether a character is there."""
    return at < end and read_u8(at) == c


@outline
def _string_end(at: int, end: int) -> Any:
    """The address after a text in quotes."""
    if not starts(at, end, _QUOTE):
        return 0
    at += 1
    while at < end:
        c = read_u8(at)
        if c == _QUOTE:
            return at + 1
        if c < 32:
            return 0
        at += 2 if c == _BACKSLASH else 1
    return 0


@outline
def _plain(c: int) -> Any:
    """Whether a character can be one of a number, or of true, false or null."""
    return within(c, 48, 10) or within(c, 97, 26) or c == 43 or within(c, 45, 2) or c == 69


@outline
def value_end(at: int, end: int) -> Any:
    """The address after a value: brackets are only counted, what is in them is not looked at."""
    depth = 0
    begin = at
    while at < end:
        c = read_u8(at)
        if c == _QUOTE:
            at = _string_end(at, end)
            if at == 0:
                return 0
        elif c in (_OPEN, _OPEN_LIST):
            depth += 1
            at += 1
        elif c in (_CLOSE, _CLOSE_LIST):
            depth -= 1
            if depth < 0:
                return at if at > begin else 0
            at += 1
        elif depth == 0:
            while at < end and _plain(read_u8(at)):
                at += 1
            return at if at > begin else 0
        else:
            at += 1
        if depth == 0:
            return at
    return at if depth == 0 and at > begin else 0


@outline
def next_pair(at: int, end: int, pair: int) -> Any:
    """Note a pair after an object's bracket or comma; returns where a comma or the end is."""
    key = skip_space(at + 1, end)
    after = _string_end(key, end)
    if after == 0:
        return 0
    colon = skip_space(after, end)
    if not starts(colon, end, _COLON):
        return 0
    value = skip_space(colon + 1, end)
    stop = value_end(value, end)
    if stop == 0:
        return 0
    write_i64(pair + 8 * KEY, key + 1)
    write_i64(pair + 8 * KEY_BYTES, after - key - 2)
    write_i64(pair + 8 * VALUE, value)
    write_i64(pair + 8 * VALUE_BYTES, stop - value)
    at = skip_space(stop, end)
    return at if starts(at, end, _COMMA) or starts(at, end, _CLOSE) else 0


@outline
def is_empty(at: int, end: int, close: int) -> Any:
    """Whether a list or an object that begins there holds nothing."""
    return starts(skip_space(at + 1, end), end, close)


@outline
def pack_value(at: int, n: int, to: int) -> Any:
    """Copy a value without the spaces between its parts; returns the address after it."""
    end = at + n
    while at < end:
        if read_u8(at) != _QUOTE:
            at = skip_space(at, end)
        after = _string_end(at, end) if starts(at, end, _QUOTE) else at + 1
        after = min(max(after, at + 1), end)
        while at < after:
            write_u8(to, read_u8(at))
            to += 1
            at += 1
    return to


@outline
def _hex_digits(at: int, end: int) -> Any:
    """The number of four digits; -1 where they are not."""
    found = 0
    for i in range(4):
        c = read_u8(at + i) if at + i < end else 0
        if within(c, 48, 10):
            c -= 48
        elif within(c | 32, 97, 6):
            c = (c | 32) - 87
        else:
            return -1
        found = found << 4 | c
    return found


@outline
def _write_character(to: int, c: int) -> Any:
    """Write a character as UTF-8."""
    if c < 0x80:
        write_u8(to, c)
        return to + 1
    more = 1 if c < 0x800 else 2 if c < 0x10000 else 3
    write_u8(to, (0xF00 >> more & 0xFF) | c >> 6 * more)
    for i in range(more):
        write_u8(to + 1 + i, 0x80 | (c >> 6 * (more - 1 - i) & 63))
    return to + 1 + more


@outline
def _letter(c: int) -> Any:
    """The character that a letter after a backslash stands for; -1 for none."""
    if c in (_QUOTE, _BACKSLASH, 47):
        return c
    if c == ord("n"):
        return 10
    if c == ord("t"):
        return 9
    if c == ord("r"):
        return 13
    if c == ord("b"):
        return 8
    return 12 if c == ord("f") else -1


@outline
def read_string(at: int, n: int, to: int) -> Any:
    """Write what a text in quotes says, in at most as many bytes; returns the address after it."""
    end = at + n - 1
    if n < 2 or not starts(at, end + 1, _QUOTE) or _string_end(at, end + 1) != end + 1:
        return 0
    at += 1
    while at < end:
        c = read_u8(at)
        at += 1
        if c != _BACKSLASH:
            write_u8(to, c)
            to += 1
        elif read_u8(at) != ord("u"):
            c = _letter(read_u8(at))
            if c < 0:
                return 0
            write_u8(to, c)
            to += 1
            at += 1
        else:
            c = _hex_digits(at + 1, end)
            at += 5
            if within(c, _SHORTEST_HIGH, _HALVES):  # half of a character
                low = -1
                if starts(at, end, _BACKSLASH) and starts(at + 1, end, ord("u")):
                    low = _hex_digits(at + 2, end)
                if not within(low, _SHORTEST_LOW, _HALVES):
                    return 0
                c = 0x10000 + (c - _SHORTEST_HIGH << 10) + low - _SHORTEST_LOW
                at += 6
            if c < 0 or within(c, _SHORTEST_LOW, _HALVES):
                return 0
            to = _write_character(to, c)
    return to
