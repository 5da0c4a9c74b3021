"""A kernel that reads session files: everything is checked, and nothing is believed.

What it finds are addresses in the file and in memory that C gives it. Texts count as edited where
they are written otherwise than edgetok writes them, as the hash is that of the canonical form.
"""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.cache.tables import get, put
from edgetok.kernels_cpu.plan.launch import IDENTITY_BYTES
from edgetok.kernels_cpu.plan.sha256 import hash_bytes
from edgetok.kernels_cpu.program.abi import kernel
from edgetok.kernels_cpu.session.launch import (
    CONTAINER,
    CONTAINER_HEAD_BYTES,
    DAMAGED,
    FOREIGN,
    FORMAT,
    MOST_TEXT_BYTES,
    OTHER_FIELDS,
    OTHER_MODEL,
    S_BLOCK,
    S_BLOCK_BYTES,
    S_FILE,
    S_FILE_BYTES,
    S_IDENTITY,
    S_MEMORY,
    S_MESSAGE_COUNT,
    S_MESSAGES,
    S_SAMPLING,
    S_SAMPLING_BYTES,
    S_TEXTS,
    S_TOKEN_COUNT,
    S_TOKENS,
    SESSION_DIGEST_BYTES,
    SESSION_RESULT,
    SESSION_TABLE,
    VERSION,
    WHOLE,
    WRONG_MESSAGES,
)
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_u8, write_i64
from edgetok.kernels_cpu.text.characters import compared, valid, within
from edgetok.kernels_cpu.text.json_read import (
    KEY,
    KEY_BYTES,
    VALUE,
    VALUE_BYTES,
    is_empty,
    key_number,
    next_pair,
    number_of,
    pack_value,
    read_string,
    skip_space,
    starts,
    value_end,
)
from edgetok.kernels_cpu.text.json_write import copied, write_digits, written

_COMMA = ord(",")
_OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE = b"[]{}"
_MAGIC = int.from_bytes(CONTAINER, "little")
_FEWEST_BYTES = 2
_MOST_OPTIONS = 64
_MOST_BLOCK_DIGITS = 15

# Memory: a hash, the pair that was read last, where values of an object are, texts that are
# compared; then messages, the canonical form and texts, each no larger than the JSON.
_PAIR_AT, _FIELDS_AT, _TEXT_AT, _LARGE_AT = 192, 256, 512, 1024

_NAMES = (
    *("format", "version", "sha256", "model", "system", "turns", "sampling"),
    *("session", "tokens", "parts", "role", "content"),
)
_AT_FORMAT, _AT_VERSION, _AT_SHA256, _AT_MODEL, _AT_SYSTEM, _AT_TURNS, _AT_SAMPLING = range(7)
_AT_SESSION, _AT_TOKENS, _AT_PARTS, _AT_ROLE, _AT_CONTENT = range(7, len(_NAMES))
_NUMBERS = tuple(map(key_number, _NAMES))
_BODY = (1 << _AT_SESSION) - 1
_CONTAINER = 1 << _AT_SESSION | 1 << _AT_TOKENS | 1 << _AT_PARTS | 1 << _AT_MODEL
_MESSAGE = 1 << _AT_ROLE | 1 << _AT_CONTENT
_IS_FORMAT = written(f'"{FORMAT}"'.encode())
_IS_VERSION = written(str(VERSION).encode())
_IS_NULL = written(b"null")
_IS_USER, _IS_ASSISTANT = written(b'"user"'), written(b'"assistant"')
_CANON_FORMAT, _CANON_MODEL = written(b'{"format":'), written(b',"model":')
_CANON_SAMPLING, _CANON_SYSTEM = written(b',"sampling":'), written(b',"system":')
_CANON_TURNS, _CANON_VERSION = written(b',"turns":'), written(b',"version":')
_CANON_CONTENT, _CANON_ROLE = written(b'{"content":'), written(b',"role":')
_WRITE_OPEN, _WRITE_CLOSE, _WRITE_COMMA = written(b"{"), written(b"}"), written(b",")
_WRITE_COLON, _WRITE_LIST, _WRITE_LIST_END = written(b":"), written(b"["), written(b"]")


@outline
def _field(number: int) -> Any:
    """Which of the names a key is; -1 for none."""
    found = -1
    for i, known in enumerate(_NUMBERS):
        if number == known:
            found = i
    return found


@outline
def _fields(m: int, at: int, end: int) -> Any:
    """Note where the values of an object are; a bit for each name, or -1 where one is unknown."""
    fields, pair, found = m + _FIELDS_AT, m + _PAIR_AT, 0
    if not starts(at, end, _OPEN):
        return -1
    while not starts(at, end, _CLOSE):
        at = next_pair(at, end, pair)
        if at == 0:
            return -1
        i = _field(number_of(get(pair, KEY), get(pair, KEY_BYTES)))
        if i < 0 or (found >> i) & 1 == 1:
            return -1
        found |= 1 << i
        put(fields, 2 * i, get(pair, VALUE))
        put(fields, 2 * i + 1, get(pair, VALUE_BYTES))
    return found


@outline
def _value(m: int, i: int) -> Any:
    return get(m + _FIELDS_AT, 2 * i)


@outline
def _size(m: int, i: int) -> Any:
    return get(m + _FIELDS_AT, 2 * i + 1)


@outline
def _copy_field(m: int, i: int, to: int) -> Any:
    return pack_value(_value(m, i), _size(m, i), to)


@outline
def _equals(m: int, i: int, text: int, n: int) -> Any:
    return compared(_value(m, i), _size(m, i), text, n) == 0


@outline
def _number(at: int, n: int) -> Any:
    """An integer of few digits; -1 for none."""
    if n < 1 or n > _MOST_BLOCK_DIGITS or (n > 1 and read_u8(at) == 48):
        return -1
    found = 0
    for i in range(n):
        if not within(read_u8(at + i), 48, 10):
            return -1
        found = 10 * found + read_u8(at + i) - 48
    return found


@outline
def _is_model(s: int, m: int) -> Any:
    """Whether the field names this model."""
    at, n = _value(m, _AT_MODEL), _size(m, _AT_MODEL)
    own = get(s, S_IDENTITY)
    return n == IDENTITY_BYTES + 2 and compared(at + 1, n - 2, own, IDENTITY_BYTES) == 0


@outline
def _next_option(m: int, at: int, end: int, last: int, best: int) -> Any:
    """Note in `best` the pair of an object whose key is the first after that of `last`, if any.

    A key of 0 stands for none, in both. Returns whether the object is one of plain values.
    """
    pair, count = m + _PAIR_AT, 0
    put(best, KEY, 0)
    while not starts(at, end, _CLOSE):
        at = next_pair(at, end, pair)
        if at == 0 or starts(get(pair, VALUE), end, _OPEN) or count == _MOST_OPTIONS:
            return False
        count += 1
        key, n = get(pair, KEY), get(pair, KEY_BYTES)
        if get(last, KEY) != 0 and compared(key, n, get(last, KEY), get(last, KEY_BYTES)) <= 0:
            continue
        if get(best, KEY) == 0 or compared(key, n, get(best, KEY), get(best, KEY_BYTES)) < 0:
            for i in range(4):
                put(best, i, get(pair, i))
    return True


@outline
def _copy_options(m: int, at: int, n: int, to: int) -> Any:
    """Copy an object of plain values, its keys in order; 0 where it is none."""
    last, best, first = m + _TEXT_AT, m + _TEXT_AT + 32, to
    put(last, KEY, 0)
    if not starts(at, at + n, _OPEN):
        return 0
    to = _WRITE_OPEN(to)
    if is_empty(at, at + n, _CLOSE):
        return _WRITE_CLOSE(to)
    while True:
        if not _next_option(m, at, at + n, last, best):
            return 0
        if get(best, KEY) == 0:
            return _WRITE_CLOSE(to)
        to = to if to == first + 1 else _WRITE_COMMA(to)
        to = copied(to, get(best, KEY) - 1, get(best, KEY_BYTES) + 2)
        to = pack_value(get(best, VALUE), get(best, VALUE_BYTES), _WRITE_COLON(to))
        for i in range(4):
            put(last, i, get(best, i))


@outline
def _add_message(s: int, at: int, n: int, to: int) -> Any:
    """Write what a text says and note it; returns the address after it, 0 where it is none."""
    i = get(s, S_MESSAGE_COUNT)
    after = read_string(at, n, to)
    if after != 0:
        write_i64(get(s, S_MESSAGES) + 16 * i, to)
        write_i64(get(s, S_MESSAGES) + 16 * i + 8, after - to)
        put(s, S_MESSAGE_COUNT, i + 1)
    return after


@outline
def _copy_turns(s: int, m: int, at: int, n: int, canonical: int, texts: int) -> Any:
    """Copy the messages to the canonical form and note each; returns the address after it."""
    end, first = at + n, canonical
    if not starts(at, end, _OPEN_LIST):
        return 0
    canonical = _WRITE_LIST(canonical)
    if is_empty(at, end, _CLOSE_LIST):
        return _WRITE_LIST_END(canonical)
    while not starts(at, end, _CLOSE_LIST):
        message = skip_space(at + 1, end)
        stop = value_end(message, end)
        if stop == 0 or _fields(m, message, stop) != _MESSAGE:
            return 0
        role = m + _TEXT_AT
        asked = get(s, S_MESSAGE_COUNT) % 2 == 1
        size = _IS_USER(role) - role if asked else _IS_ASSISTANT(role) - role
        texts = _add_message(s, _value(m, _AT_CONTENT), _size(m, _AT_CONTENT), texts)
        if texts == 0 or not _equals(m, _AT_ROLE, role, size):
            return 0
        canonical = canonical if canonical == first + 1 else _WRITE_COMMA(canonical)
        canonical = _copy_field(m, _AT_CONTENT, _CANON_CONTENT(canonical))
        canonical = _WRITE_CLOSE(_copy_field(m, _AT_ROLE, _CANON_ROLE(canonical)))
        at = skip_space(stop, end)
        if not starts(at, end, _COMMA) and not starts(at, end, _CLOSE_LIST):
            return 0
    return _WRITE_LIST_END(canonical)


@outline
def _is_hash(m: int, at: int, n: int, data: int, count: int) -> Any:
    """Whether a text in quotes is the hash of `count` bytes."""
    hash_bytes(data, count, m)
    digits = m + _TEXT_AT
    size = write_digits(digits, m, SESSION_DIGEST_BYTES) - digits
    return n == size + 2 and compared(at + 1, size, digits, size) == 0


@outline
def _conversation(s: int, at: int, n: int) -> Any:
    """Read a conversation's JSON; the number of a fault."""
    m = get(s, S_MEMORY)
    text, system = m + _TEXT_AT, _AT_SYSTEM
    if _fields(m, at, at + n) != _BODY:
        return OTHER_FIELDS
    if not _equals(m, _AT_FORMAT, text, _IS_FORMAT(text) - text):
        return FOREIGN
    if not _equals(m, _AT_VERSION, text, _IS_VERSION(text) - text):
        return OTHER_FIELDS
    messages = m + _LARGE_AT
    begin = messages + (n + 71) // 8 * 8
    texts = begin + n + 64
    put(s, S_TEXTS, 0)
    put(s, S_MESSAGES, messages)
    put(s, S_MESSAGE_COUNT, 1)
    put(messages, 0, 0)
    put(messages, 1, -1)
    if not _equals(m, system, text, _IS_NULL(text) - text):
        put(s, S_MESSAGE_COUNT, 0)
        texts = _add_message(s, _value(m, system), _size(m, system), texts)
        if texts == 0:
            return WRONG_MESSAGES
    to = _copy_field(m, _AT_MODEL, _CANON_MODEL(_copy_field(m, _AT_FORMAT, _CANON_FORMAT(begin))))
    to = _CANON_SAMPLING(to)
    put(s, S_SAMPLING, to)
    to = _copy_options(m, _value(m, _AT_SAMPLING), _size(m, _AT_SAMPLING), to)
    if to == 0:
        return OTHER_FIELDS
    put(s, S_SAMPLING_BYTES, to - get(s, S_SAMPLING))
    to = _CANON_TURNS(_copy_field(m, system, _CANON_SYSTEM(to)))
    known = _is_model(s, m)
    digest, digest_bytes = _value(m, _AT_SHA256), _size(m, _AT_SHA256)
    to = _copy_turns(s, m, _value(m, _AT_TURNS), _size(m, _AT_TURNS), to, texts)
    if to == 0:
        return WRONG_MESSAGES
    to = _WRITE_CLOSE(_IS_VERSION(_CANON_VERSION(to)))
    if not _is_hash(m, digest, digest_bytes, begin, to - begin):
        return DAMAGED
    return WHOLE if known else OTHER_MODEL


@outline
def _parts_fit(s: int, m: int, begin: int, size: int) -> Any:
    """Note the container's two parts; whether they have all of `size` bytes, and tokens theirs."""
    at = _value(m, _AT_PARTS)
    end = at + _size(m, _AT_PARTS)
    if not starts(at, end, _OPEN_LIST):
        return False
    first = skip_space(at + 1, end)
    stop = value_end(first, end)
    if stop == 0:
        return False
    tokens, at = _number(first, stop - first), skip_space(stop, end)
    if not starts(at, end, _COMMA):
        return False
    second = skip_space(at + 1, end)
    stop = value_end(second, end)
    if stop == 0 or not starts(skip_space(stop, end), end, _CLOSE_LIST):
        return False
    block = _number(second, stop - second)
    count = _number(_value(m, _AT_TOKENS), _size(m, _AT_TOKENS))
    put(s, S_TOKENS, begin)
    put(s, S_TOKEN_COUNT, count)
    put(s, S_BLOCK, begin + tokens)
    put(s, S_BLOCK_BYTES, block)
    return block >= 0 and tokens >= 0 and tokens == 4 * count and tokens + block == size


@outline
def _json_bytes(s: int) -> Any:
    """Bytes of the file's JSON; -1 where there is none."""
    file, size = get(s, S_FILE), get(s, S_FILE_BYTES)
    if size < _FEWEST_BYTES:
        return -1
    if size >= CONTAINER_HEAD_BYTES + SESSION_DIGEST_BYTES and read_i64(file) == _MAGIC:
        count = read_i64(file + 8)
        most = size - CONTAINER_HEAD_BYTES - SESSION_DIGEST_BYTES
        return count if count >= _FEWEST_BYTES and count <= most else -1
    return size if starts(skip_space(file, file + size), file + size, _OPEN) else -1


@outline
def _read(s: int, n: int) -> Any:
    m, file, size = get(s, S_MEMORY), get(s, S_FILE), get(s, S_FILE_BYTES)
    at, whole = file, size - SESSION_DIGEST_BYTES
    put(s, S_TOKEN_COUNT, -1)
    contained = size >= CONTAINER_HEAD_BYTES + SESSION_DIGEST_BYTES and read_i64(file) == _MAGIC
    if contained:
        hash_bytes(file, whole, m)
        if compared(m, SESSION_DIGEST_BYTES, file + whole, SESSION_DIGEST_BYTES) != 0:
            return DAMAGED
        at = file + CONTAINER_HEAD_BYTES
    end = at + n
    if not valid(at, n):
        return DAMAGED
    begin = skip_space(at, end)
    stop = value_end(begin, end)
    if stop == 0 or skip_space(stop, end) != end:
        return DAMAGED
    if not contained:
        return _conversation(s, begin, stop - begin)
    if _fields(m, begin, stop) != _CONTAINER:
        return OTHER_FIELDS
    if not _parts_fit(s, m, end, file + whole - end):
        return DAMAGED
    if not _is_model(s, m):
        return OTHER_MODEL
    return _conversation(s, _value(m, _AT_SESSION), _size(m, _AT_SESSION))


@kernel
def session_read(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Find what a session file holds; the result is the number of a fault."""
    s = get(instr, SESSION_TABLE)
    n = _json_bytes(s)
    if n > MOST_TEXT_BYTES:
        n = -1
    if get(s, S_MEMORY) == 0:
        put(instr, SESSION_RESULT, _LARGE_AT + 3 * max(n, 0) + 512)
    else:
        put(instr, SESSION_RESULT, FOREIGN if n < 0 else _read(s, n))
