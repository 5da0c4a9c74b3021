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
from typing import Any, BinaryIO

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
    """Return whether a regular file begins as a container does."""
    try:
        if not path.is_file():  # a pipe would wait for somebody to write
            return False
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_container(
    path: Path, model: str, max_bytes: int = 1 << 36
) -> tuple[dict[str, Any], list[Bytes]]:
    """Read a container of one model.

    The header is read first: nothing else is read of a file whose size is not what the header says.

    Args:
        path: a regular file.
        model: `Artefact.identity`.
        max_bytes: a larger file is refused unread.

    Returns:
        The header, and its parts as views of one buffer.

    Raises:
        SessionError: the file is missing, too large, damaged or belongs to another model.
    """
    try:
        if not path.is_file():
            raise SessionError(f"{path}: is missing or not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise SessionError(f"{path}: {size:,} bytes, expected at most {max_bytes:,}")
            head, sizes, at = _read_head(path, file, size)
            file.seek(0)
            data = np.fromfile(file, np.uint8, count=size)
    except OSError as error:
        raise SessionError(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(_view(data[:-_DIGEST_BYTES])).digest()
    if data.nbytes != size or not hmac.compare_digest(found, data[-_DIGEST_BYTES:].tobytes()):
        raise SessionError(f"{path}: hash mismatch; the file is damaged or was edited")
    if head.get("model") != model:
        raise SessionError(
            f"{path}: belongs to another model ({head.get('model')!s:.12}, this one is "
            f"{model:.12}); load it with the model that it was saved with"
        )
    parts = []
    for nbytes in sizes:
        parts.append(data[at : at + nbytes])
        at += nbytes
    return head, parts


def _read_head(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], list[int], int]:
    """The header, bytes of each part, and where the first one begins; sizes add up."""
    start = len(MAGIC) + 8
    first = file.read(start)
    if size < start + _DIGEST_BYTES or first[: len(MAGIC)] != MAGIC:
        raise SessionError(f"{path}: this is not a file that edgetok saved")
    length = int.from_bytes(first[len(MAGIC) :], "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, size - start - _DIGEST_BYTES):
        raise SessionError(
            f"{path}: hash mismatch; the file is damaged: a header of {length:,} bytes does not "
            "fit it"
        )
    head = strict_json.loads_object(
        file.read(length), str(path), max_bytes=_MAX_HEADER_BYTES, error=SessionError
    )
    sizes = head.get("parts")
    if (
        not isinstance(sizes, list)
        or len(sizes) > _MAX_PARTS
        or not all(type(n) is int and n >= 0 for n in sizes)
        or start + length + sum(sizes) + _DIGEST_BYTES != size
    ):
        raise SessionError(f"{path}: parts do not add up to the file's {size:,} bytes")
    return head, sizes, start + length


def _view(array: Bytes) -> memoryview:
    return np.ascontiguousarray(array).data
