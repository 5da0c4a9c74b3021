"""Kernels that write session files: the conversation as JSON, and the cache in a container.

Keys are in the order of their canonical form, so that the text is hashed as it is written.
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
    FORMAT,
    S_BLOCK_BYTES,
    S_FILE,
    S_IDENTITY,
    S_MEMORY,
    S_MESSAGE_COUNT,
    S_MESSAGES,
    S_SAMPLING,
    S_SAMPLING_BYTES,
    S_TEXT,
    S_TEXT_BYTES,
    S_TEXTS,
    S_TOKEN_COUNT,
    S_TOKENS,
    SESSION_DIGEST_BYTES,
    SESSION_RESULT,
    SESSION_TABLE,
    VERSION,
)
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import write_i64
from edgetok.kernels_cpu.text.json_write import (
    copied,
    write_digits,
    write_number,
    write_string,
    written,
)

_OWN_BYTES = 2048  # of memory: a hash, and all keys
_HASH_AT, _TEXT_AT = 0, 256
_SESSION = written(b'{"session":')
_FORMAT = written(b'{"format":"' + FORMAT.encode() + b'","model":"')
_SAMPLING, _EMPTY = written(b'","sampling":'), written(b"{}")
_SYSTEM, _NULL, _TURNS = written(b',"system":'), written(b"null"), written(b',"turns":[')
_CONTENT, _COMMA = written(b'{"content":'), written(b",")
_USER, _ASSISTANT = written(b',"role":"user"}'), written(b',"role":"assistant"}')
_VERSION = written(b'],"version":' + str(VERSION).encode() + b"}")
_SHA256, _END = written(b',"sha256":"'), written(b'"}')
_TOKENS, _MODEL, _PARTS = written(b',"tokens":'), written(b',"model":"'), written(b'","parts":[')
_PARTS_END = written(b"]}")
_CONTAINER = written(CONTAINER)


@outline
def _write_message(s: int, to: int, i: int) -> Any:
    message = get(s, S_MESSAGES) + 16 * i
    return write_string(to, get(s, S_TEXTS) + get(message, 0), get(message, 1))


@outline
def _write_conversation(s: int, to: int) -> Any:
    """Write the JSON, and its hash as the last field."""
    begin, hashed = to, get(s, S_MEMORY) + _HASH_AT
    to = _SAMPLING(copied(_FORMAT(to), get(s, S_IDENTITY), IDENTITY_BYTES))
    if get(s, S_SAMPLING_BYTES) == 0:
        to = _EMPTY(to)
    else:
        to = copied(to, get(s, S_SAMPLING), get(s, S_SAMPLING_BYTES))
    to = _SYSTEM(to)
    to = _NULL(to) if get(get(s, S_MESSAGES), 1) < 0 else _write_message(s, to, 0)
    to = _TURNS(to)
    for i in range(1, get(s, S_MESSAGE_COUNT)):
        to = _write_message(s, _CONTENT(to if i == 1 else _COMMA(to)), i)
        to = _USER(to) if i % 2 == 1 else _ASSISTANT(to)
    to = _VERSION(to)
    hash_bytes(begin, to - begin, hashed)
    return _END(write_digits(_SHA256(to - 1), hashed, SESSION_DIGEST_BYTES))


@outline
def _needed(s: int) -> Any:
    """Bytes of memory that are enough."""
    count = get(s, S_MESSAGE_COUNT)
    needed = _OWN_BYTES + get(s, S_SAMPLING_BYTES)
    for i in range(count):
        needed += 6 * max(0, get(get(s, S_MESSAGES) + 16 * i, 1)) + 64
    return needed


@outline
def _write_text(s: int) -> Any:
    """Write the file's JSON to memory; returns bytes of the file."""
    begin = get(s, S_MEMORY) + _TEXT_AT
    tokens, block = get(s, S_TOKEN_COUNT), get(s, S_BLOCK_BYTES)
    put(s, S_TEXT, begin)
    if tokens < 0:
        put(s, S_TEXT_BYTES, _write_conversation(s, begin) - begin)
        return get(s, S_TEXT_BYTES)
    to = _write_conversation(s, _SESSION(begin))
    to = _MODEL(write_number(_TOKENS(to), tokens))
    to = _PARTS(copied(to, get(s, S_IDENTITY), IDENTITY_BYTES))
    to = _PARTS_END(write_number(_COMMA(write_number(to, 4 * tokens)), block))
    put(s, S_TEXT_BYTES, to - begin)
    return CONTAINER_HEAD_BYTES + to - begin + 4 * tokens + block + SESSION_DIGEST_BYTES


@kernel
def session_text(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Write the JSON of a session to its memory; the result is bytes of the file."""
    s = get(instr, SESSION_TABLE)
    put(instr, SESSION_RESULT, _needed(s) if get(s, S_MEMORY) == 0 else _write_text(s))


@kernel
def session_write(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Write a file around its block, which is there already: before the last 32 bytes."""
    s = get(instr, SESSION_TABLE)
    file, size, tokens = get(s, S_FILE), get(s, S_TEXT_BYTES), get(s, S_TOKEN_COUNT)
    if tokens < 0:
        copied(file, get(s, S_TEXT), size)
    else:
        to = _CONTAINER(file)
        write_i64(to, size)
        to = copied(copied(to + 8, get(s, S_TEXT), size), get(s, S_TOKENS), 4 * tokens)
        to += get(s, S_BLOCK_BYTES)
        hashed = get(s, S_MEMORY) + _HASH_AT
        hash_bytes(file, to - file, hashed)
        copied(to, hashed, SESSION_DIGEST_BYTES)
