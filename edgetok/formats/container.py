"""Container files of edgetok, with numbers and bytes: saved caches. Never unpickled.

    magic, 8 bytes | length of the header, uint64 | header, JSON | parts, one by one | sha256

all little-endian. The header is {"model": identity, "parts": [bytes of each], ...}; the hash is
that of all bytes before it and is checked first.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import OutputError, SessionError
from edgetok.formats import strict_json

MAGIC = b"edgetokC"
_MAX_HEADER_BYTES = 64 << 20
_MAX_PARTS = 16
_DIGEST_BYTES = 32

Bytes = npt.NDArray[np.uint8]


def replace_file(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def write_container(path: Path, model: str, header: dict[str, Any], parts: Sequence[Bytes]) -> None:
    """Write a container.

    Args:
        path: the file, replaced only by a whole one.
        model: `Artefact.identity` of the model that it belongs to.
        header: JSON values.
        parts: uint8, at most 16.

    Raises:
        OutputError: it cannot be written.
    """
    body = {**header, "model": model, "parts": [int(part.nbytes) for part in parts]}
    text = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    digest = hashlib.sha256()

    def chunks() -> Iterable[bytes | memoryview]:
        head = MAGIC + len(text).to_bytes(8, "little") + text
        for chunk in (memoryview(head), *map(_view, parts)):
            digest.update(chunk)
            yield chunk
        yield digest.digest()

    replace_file(path, chunks())


def is_container(path: Path) -> bool:
    """Return whether a file begins as a container does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_container(
    path: Path, model: str, max_bytes: int = 1 << 36
) -> tuple[dict[str, Any], list[Bytes]]:
    """Read a container of one model.

    Returns:
        The header, and its parts as views of one buffer.

    Raises:
        SessionError: the file is missing, too large, damaged or belongs to another model.
    """
    try:
        if not path.is_file():
            raise SessionError(f"{path}: is missing or no regular file")
        size = path.stat().st_size
        if size > max_bytes:
            raise SessionError(f"{path}: {size:,} bytes, expected at most {max_bytes:,}")
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror}") from error
    start = len(MAGIC) + 8
    if data.nbytes < start + _DIGEST_BYTES or data[: len(MAGIC)].tobytes() != MAGIC:
        raise SessionError(f"{path}: this is not a file that edgetok saved")
    result = hashlib.sha256(_view(data[:-_DIGEST_BYTES])).digest()
    if not hmac.compare_digest(result, data[-_DIGEST_BYTES:].tobytes()):
        raise SessionError(f"{path}: hash mismatch; the file is damaged or was edited")
    length = int.from_bytes(data[len(MAGIC) : start].tobytes(), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, data.nbytes - start - _DIGEST_BYTES):
        raise SessionError(f"{path}: a header of {length:,} bytes does not fit the file")
    header = strict_json.loads_object(
        data[start : start + length].tobytes(),
        str(path),
        max_bytes=_MAX_HEADER_BYTES,
        error=SessionError,
    )
    if header.get("model") != model:
        raise SessionError(
            f"{path}: belongs to another model ({header.get('model')!s:.12}, this one is "
            f"{model:.12}); load it with the model that it was saved with"
        )
    sizes = header.get("parts")
    if (
        not isinstance(sizes, list)
        or len(sizes) > _MAX_PARTS
        or not all(type(n) is int and n >= 0 for n in sizes)
        or start + length + sum(sizes) + _DIGEST_BYTES != data.nbytes
    ):
        raise SessionError(f"{path}: parts do not add up to the file's {data.nbytes:,} bytes")
    parts, at = [], start + length
    for nbytes in sizes:
        parts.append(data[at : at + nbytes])
        at += nbytes
    return header, parts


def _view(array: Bytes) -> memoryview:
    return np.ascontiguousarray(array).data
