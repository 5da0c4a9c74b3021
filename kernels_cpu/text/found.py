"""Tokens that are found in a text, and their spellings. For kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_int, read_u8, write_i32, write_i64
from edgetok.kernels_cpu.text.characters import compared
from edgetok.kernels_cpu.text.launch import (
    ENCODE_CAPACITY,
    ENCODE_COUNT,
    ENCODE_IDS,
    TAB_BY_TEXT,
    TAB_BYTES,
    TAB_OFFSETS,
    TAB_TEXT,
    TOK_BY_TEXT,
)


@outline
def emit(e: int, token: int) -> None:
    """Append a token; beyond the capacity it is counted alone."""
    count = read_i64(e + 8 * ENCODE_COUNT)
    if count < read_i64(e + 8 * ENCODE_CAPACITY):
        write_i32(read_i64(e + 8 * ENCODE_IDS) + 4 * count, np.int32(token))
    write_i64(e + 8 * ENCODE_COUNT, count + 1)


@inline
def of_byte(t: int, byte: int) -> Any:
    """The token of a byte; -1 for none."""
    return read_int(read_i64(t + 8 * TAB_BYTES) + 4 * byte)


@outline
def have_bytes(t: int, s: int, n: int) -> Any:
    """1 where each of n bytes has a token, else 0."""
    for i in range(n):
        if of_byte(t, read_u8(s + i)) < 0:
            return 0
    return 1


@outline
def token_of(t: int, s: int, n: int) -> Any:
    """The token that is spelled so, of those in `by_text`; -1 for none."""
    ids = read_i64(t + 8 * TAB_BY_TEXT)
    offsets = read_i64(t + 8 * TAB_OFFSETS)
    text = read_i64(t + 8 * TAB_TEXT)
    low = 0
    high = read_i64(t + 8 * TOK_BY_TEXT)
    while low < high:
        middle = (low + high) >> 1
        token = read_int(ids + 4 * middle)
        begin = read_int(offsets + 4 * token)
        order = compared(text + begin, read_int(offsets + 4 * token + 4) - begin, s, n)
        if order == 0:
            return token
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return -1
