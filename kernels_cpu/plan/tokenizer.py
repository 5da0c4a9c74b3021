"""A kernel that checks a tokenizer's tables (`text/launch.py`) before others work with them."""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.cache.tables import between, get, put
from edgetok.kernels_cpu.plan.launch import (
    CHECK_BYTES,
    CHECK_DATA,
    CHECK_LIST,
    CHECK_RESULT,
    CHECK_SHAPES,
    CHECK_VOCAB,
    SHAPE_NUMBERS,
)
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_int
from edgetok.kernels_cpu.text.launch import (
    KIND_UNIGRAM,
    LIMIT_ANY,
    LIMIT_BYTE,
    LIMIT_CHARACTERS,
    LIMIT_PLACE,
    LIMIT_PLACES,
    LIMIT_TOKEN,
    LIMIT_TOKEN_OR_NONE,
    NUMBERS,
    TAB_FLAGS,
    TAB_OFFSETS,
    TAB_TEXT,
    TABLES,
    TOK_KIND,
    TOK_SPACE,
    TOK_UNKNOWN,
)

_NUMBERS, _TABLES = len(NUMBERS), len(TABLES)
_TOKENS, _LONGEST = NUMBERS.index("tokens"), NUMBERS.index("longest")
_MOST_NUMBER = 1 << 28
_MOST_CHARACTER = 0x10FFFF
_ROWS, _MORE, _COLUMNS, _LIMITS = range(4)  # of a table's shape


@inline
def _shape(one: int, table: int, number: int) -> Any:
    return read_int(get(one, CHECK_SHAPES) + 4 * (SHAPE_NUMBERS * table + number))


@inline
def _ascends(limit: int) -> Any:
    return limit in (LIMIT_PLACES, LIMIT_CHARACTERS)


@outline
def _rows(one: int, table: int) -> Any:
    """How many rows a table has."""
    counted = _shape(one, table, _ROWS)
    rows = _shape(one, table, _MORE)
    if counted >= 0:
        rows += get(get(one, CHECK_LIST), counted)
    return rows


@outline
def _table_fits(one: int, table: int, text: int) -> Any:
    """Whether every number of a table keeps the limits of its column."""
    columns, vocab = _shape(one, table, _COLUMNS), get(one, CHECK_VOCAB)
    at = get(get(one, CHECK_LIST), _NUMBERS + table)
    for column in range(columns):
        limit = _shape(one, table, _LIMITS + column)
        low = -1 if limit == LIMIT_TOKEN_OR_NONE else 0
        high = _MOST_CHARACTER
        if between(limit, LIMIT_TOKEN, LIMIT_TOKEN_OR_NONE):
            high = vocab - 1
        elif between(limit, LIMIT_PLACE, LIMIT_PLACES):
            high = text
        elif limit == LIMIT_BYTE:
            high = 255
        for row in range(_rows(one, table) if limit != LIMIT_ANY else 0):
            i = columns * row + column
            value = read_int(at + 4 * i)
            if not between(value, low, high):
                return False
            if _ascends(limit) and i > 0 and value < read_int(at + 4 * i - 4):
                return False
    return True


@outline
def _numbers_fit(one: int) -> Any:
    """Copy the numbers into the list; whether they can be."""
    t, vocab = get(one, CHECK_LIST), get(one, CHECK_VOCAB)
    if get(one, CHECK_BYTES) < 8 * _NUMBERS:
        return False
    for i in range(_NUMBERS):
        low = -1 if i in (TOK_UNKNOWN, TOK_SPACE) else 0
        put(t, i, get(get(one, CHECK_DATA), i))
        if not between(get(t, i), low, _MOST_NUMBER):
            return False
    if get(t, TOK_KIND) == KIND_UNIGRAM and get(t, TOK_UNKNOWN) < 0:
        return False
    return get(t, _TOKENS) == vocab and max(get(t, TOK_UNKNOWN), get(t, TOK_SPACE)) < vocab


@outline
def _tables_fit(one: int) -> Any:
    """Find the tables; whether they are in the section, and their numbers can be."""
    t, vocab = get(one, CHECK_LIST), get(one, CHECK_VOCAB)
    at = get(one, CHECK_DATA) + 8 * _NUMBERS
    left = get(one, CHECK_BYTES) - 8 * _NUMBERS
    for table in range(_TABLES):
        nbytes = 4 * _rows(one, table) * _shape(one, table, _COLUMNS)
        put(t, _NUMBERS + table, at)
        if nbytes > left:
            return False
        at += nbytes
        left -= nbytes
    put(t, TAB_FLAGS, at)
    put(t, TAB_TEXT, at + vocab)
    if left < vocab:
        return False
    for table in range(_TABLES):
        if not _table_fits(one, table, left - vocab):
            return False
    offsets = get(t, TAB_OFFSETS)
    for i in range(vocab):
        if read_int(offsets + 4 * i + 4) - read_int(offsets + 4 * i) > get(t, _LONGEST):
            return False
    return True


@kernel
def tokenizer_check(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Fill a tokenizer's list from the section TOKENIZER; the result is 1 where all can be."""
    put(instr, CHECK_RESULT, 1 if _numbers_fit(instr) and _tables_fit(instr) else 0)
