"""Write JSON as Python's `json.dumps(ensure_ascii=False)` does. For kernels; nothing is registered.

Every function returns the address after what it wrote.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.composing import number
from edgetok.kernels_cpu.simd.emit import _I8, _store, i64, op, outline
from edgetok.kernels_cpu.simd.memory import read_u8
from edgetok.kernels_cpu.text.characters import within, write_u8

_QUOTE, _BACKSLASH = ord('"'), ord("\\")


def written(text: bytes) -> Any:
    """An operation that writes a text at an address."""

    @op(i64, i64)
    def write(b: Any, to: Any) -> Any:
        for i, byte in enumerate(text):
            _store(b, b.add(to, number(i)), ir.Constant(_I8, byte))
        return b.add(to, number(len(text)))

    return write


_CONTROL = written(b"\\u00")


@outline
def copied(to: int, s: int, n: int) -> Any:
    """Copy bytes."""
    for i in range(n):
        write_u8(to + i, read_u8(s + i))
    return to + n


@outline
def write_hex(to: int, byte: int) -> Any:
    """Write a byte as two lower-case digits."""
    for i in range(2):
        digit = byte >> 4 if i == 0 else byte & 15
        write_u8(to + i, digit + (48 if digit < 10 else 87))
    return to + 2


@outline
def write_digits(to: int, s: int, n: int) -> Any:
    """Write bytes as two digits each."""
    for i in range(n):
        to = write_hex(to, read_u8(s + i))
    return to


@outline
def write_number(to: int, value: int) -> Any:
    """Write an integer from 0 on."""
    digits = 1
    rest = value // 10
    while rest > 0:
        digits += 1
        rest //= 10
    rest = value
    for i in range(digits):
        write_u8(to + digits - 1 - i, 48 + rest % 10)
        rest //= 10
    return to + digits


@outline
def _short(c: int) -> Any:
    """The letter after a backslash that stands for a character; 0 for none."""
    if c in (_QUOTE, _BACKSLASH):
        return c
    if c == 8:
        return ord("b")
    if c == 9:
        return ord("t")
    if c == 10:
        return ord("n")
    if c == 12:
        return ord("f")
    return ord("r") if c == 13 else 0


@outline
def write_string(to: int, s: int, n: int) -> Any:
    """Write a text in quotes: at most 6 bytes for each of its own, and 2."""
    write_u8(to, _QUOTE)
    to += 1
    for i in range(n):
        c = read_u8(s + i)
        letter = _short(c)
        if letter != 0:
            write_u8(to, _BACKSLASH)
            write_u8(to + 1, letter)
            to += 2
        elif within(c, 0, 32):
            to = write_hex(_CONTROL(to), c)
        else:
            write_u8(to, c)
            to += 1
    write_u8(to, _QUOTE)
    return to + 1
