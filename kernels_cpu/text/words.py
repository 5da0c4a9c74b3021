"""Words of byte-level BPE, by the patterns of GPT-2, Llama 3 and Qwen 2. For kernels.

Each function is given a text that is not empty and returns the bytes of its first word.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8
from edgetok.kernels_cpu.text.characters import SIZE_BITS, SIZE_MASK, character, in_class
from edgetok.kernels_cpu.text.launch import (
    PATTERN_GPT2,
    TAB_LETTERS,
    TAB_NUMBERS,
    TAB_SPACES,
    TOK_DIGITS,
    TOK_LETTERS,
    TOK_NUMBERS,
    TOK_PATTERN,
    TOK_SPACES,
)

_NOTHING, _OTHER, _LETTER, _NUMBER, _SPACE, _LINE = range(6)  # a line's end is a space, too


@outline
def _kind_at(t: int, s: int, at: int, n: int) -> Any:
    """The kind of a character, shifted by SIZE_BITS, and how many bytes it has; 0 at the end."""
    if at >= n:
        return 0
    found = character(s + at)
    size = found & SIZE_MASK
    c = found >> SIZE_BITS
    kind = _OTHER
    if c == 10 or c == 13:
        kind = _LINE
    elif in_class(t, TAB_LETTERS, TOK_LETTERS, c):
        kind = _LETTER
    elif in_class(t, TAB_NUMBERS, TOK_NUMBERS, c):
        kind = _NUMBER
    elif in_class(t, TAB_SPACES, TOK_SPACES, c):
        kind = _SPACE
    return kind << SIZE_BITS | size


@inline
def _lower(c: int, any_case: bool) -> Any:
    """A letter of ASCII as a small one, where the case does not matter."""
    return c | 32 if any_case and 65 <= c <= 90 else c


@outline
def _contraction(s: int, n: int, any_case: bool) -> Any:
    """Bytes of 's, 't, 'm, 'd, 're, 've or 'll; 0 for none."""
    if n < 2 or read_u8(s) != 39:
        return 0
    a = _lower(read_u8(s + 1), any_case)
    if a == 115 or a == 116 or a == 109 or a == 100:  # s t m d
        return 2
    if n < 3:
        return 0
    b = _lower(read_u8(s + 2), any_case)
    if ((a == 114 or a == 118) and b == 101) or (a == 108 and b == 108):  # re ve ll
        return 3
    # Unicode's simple case folding: U+017F, a long s, is an s.
    if any_case and a == 0xC5 and b == 0xBF:
        return 3
    return 0


@outline
def _run_of(t: int, s: int, at: int, n: int, kind: int) -> Any:
    """Where a run of characters of one kind ends."""
    while True:
        found = _kind_at(t, s, at, n)
        if found >> SIZE_BITS != kind:
            return at
        at += found & SIZE_MASK


@outline
def _spaces(t: int, s: int, n: int) -> Any:
    """The spaces at the front: all of them at the end of the text, else all but the last."""
    at = 0
    last = 0
    while at < n:
        found = _kind_at(t, s, at, n)
        if found >> SIZE_BITS < _SPACE:
            return at - last if at > last else at
        last = found & SIZE_MASK
        at += last
    return at


@outline
def _word_gpt2(t: int, s: int, n: int) -> Any:
    """'s|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?other+|spaces."""
    size = _contraction(s, n, False)
    if size > 0:
        return size
    at = 1 if read_u8(s) == 32 and n > 1 else 0
    kind = _kind_at(t, s, at, n) >> SIZE_BITS
    if kind >= _SPACE:
        return _spaces(t, s, n)
    return _run_of(t, s, at, n, kind)


@outline
def _word_llama3(t: int, s: int, n: int) -> Any:
    """(?i:'s|...)|[^line L N]?L+|N{1,digits}| ?other+ lines*|spaces* lines|spaces."""
    size = _contraction(s, n, True)
    if size > 0:
        return size
    first = _kind_at(t, s, 0, n)
    kind = first >> SIZE_BITS
    after = first & SIZE_MASK
    if kind == _LETTER:
        return _run_of(t, s, 0, n, _LETTER)
    if kind != _NUMBER and kind != _LINE and _kind_at(t, s, after, n) >> SIZE_BITS == _LETTER:
        return _run_of(t, s, after, n, _LETTER)
    if kind == _NUMBER:
        at = 0
        for _ in range(read_i64(t + 8 * TOK_DIGITS)):
            found = _kind_at(t, s, at, n)
            if found >> SIZE_BITS != _NUMBER:
                break
            at += found & SIZE_MASK
        return at
    at = 1 if read_u8(s) == 32 else 0
    end = _run_of(t, s, at, n, _OTHER)
    if end > at:
        return _run_of(t, s, end, n, _LINE)
    end = 0  # of the last line's end among spaces
    at = 0
    while at < n:
        found = _kind_at(t, s, at, n)
        if found >> SIZE_BITS < _SPACE:
            break
        at += found & SIZE_MASK
        if found >> SIZE_BITS == _LINE:
            end = at
    return end if end > 0 else _spaces(t, s, n)


@outline
def word(t: int, s: int, n: int) -> Any:
    """Bytes of the first word; at least one character, whatever the tables say."""
    if read_i64(t + 8 * TOK_PATTERN) == PATTERN_GPT2:
        size = _word_gpt2(t, s, n)
    else:
        size = _word_llama3(t, s, n)
    return size if size > 0 else character(s) & SIZE_MASK
