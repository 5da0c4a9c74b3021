"""Read JSON from others strictly: bounded, no duplicate keys, no NaN or Infinity.

Python's reader keeps the last of two equal keys and takes NaN, so that two readers of one file may
see two different models. Both are errors here. Size and depth are checked before anything is built.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import CheckpointError, UserError
from edgetok.formats.lfs import LEFT_OUT, is_pointer

MAX_BYTES = 8 << 20
MAX_DEPTH = 64
MAX_KEYS = 1 << 21

_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def loads(
    data: bytes,
    what: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_keys: int = MAX_KEYS,
    error: type[UserError] = CheckpointError,
) -> Any:
    """Parse JSON from UTF-8 bytes.

    Args:
        data: the text.
        what: the file's name, for messages.
        max_bytes: more bytes than this are refused unread.
        max_depth: how deeply objects and arrays may nest.
        max_keys: most keys of all objects together.
        error: class of what is raised.

    Raises:
        UserError: an error of class `error`, naming `what` and what is wrong with it.
    """
    if len(data) > max_bytes:
        raise error(f"{what}: {len(data):,} bytes of JSON, expected at most {max_bytes:,}")
    outside = _outside(data)
    depth = int(np.cumsum(_STEP[outside], dtype=np.int32).max(initial=0))
    if depth > max_depth:
        raise error(f"{what}: nested {depth} deep, expected at most {max_depth}")
    keys = int(np.count_nonzero(outside == ord(":")))
    if keys > max_keys:
        raise error(f"{what}: {keys:,} keys, expected at most {max_keys:,}")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise error(f"{what}: key {twice!r:.80} occurs twice; remove one of them")
        return result

    def constant(name: str) -> Any:
        raise error(f"{what}: {name} is not a JSON number; give a finite one or null")

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise error(f"{what}: {text[:40]} is too large for a number")
        return value

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
        )
        if b"\\ud" in data or b"\\uD" in data:  # half of a character cannot be written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (ValueError, RecursionError) as failure:
        raise error(f"{what}: not valid JSON: {failure}") from failure


def loads_object(
    data: bytes,
    what: str,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_keys: int = MAX_KEYS,
    error: type[UserError] = CheckpointError,
) -> dict[str, Any]:
    """Parse JSON whose outermost value must be an object.

    Raises:
        UserError: an error of class `error`, as for `loads`, or where the value is not an object.
    """
    value = loads(
        data, what, max_bytes=max_bytes, max_depth=max_depth, max_keys=max_keys, error=error
    )
    if not isinstance(value, dict):
        raise error(f"{what}: holds a {type(value).__name__}, expected an object")
    return value


def read_object(
    path: Path,
    *,
    max_bytes: int = MAX_BYTES,
    error: type[UserError] = CheckpointError,
) -> dict[str, Any]:
    """Read a JSON file whose outermost value must be an object.

    Raises:
        UserError: an error of class `error`, where the file is absent, no regular file, too large,
            or as for `loads_object`.
    """
    return loads_object(
        read_bytes(path, max_bytes=max_bytes, error=error),
        path.name,
        max_bytes=max_bytes,
        error=error,
    )


def read_bytes(path: Path, *, max_bytes: int, error: type[UserError] = CheckpointError) -> bytes:
    """Read a small regular file whole, never more than `max_bytes`.

    Raises:
        UserError: an error of class `error`, where the file is absent, no regular file or larger.
    """
    try:
        # Without O_NONBLOCK opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{path}: not a regular file")
            if status.st_size > max_bytes:
                raise error(f"{path}: {status.st_size:,} bytes, expected at most {max_bytes:,}")
            data = file.read(max_bytes)
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from failure
    if is_pointer(data):
        raise error(f"{path}: {LEFT_OUT}")
    return data


def _outside(data: bytes) -> npt.NDArray[np.uint8]:
    """The bytes that are in no string, each byte looked at once; a string may be left open."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    found = np.frombuffer(plain, np.uint8)
    return found[~np.logical_xor.accumulate(found == ord('"'))]
