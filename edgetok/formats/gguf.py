"""A GGUF file's table, read strictly: metadata, and where each tensor lies.

    "GGUF"  version u32  tensors u64  fields u64
    fields: name, type u32, value            strings: bytes u64, UTF-8
    tensors: name, dims u32, sizes u64 each (innermost first), type u32, offset u64
    padding to `general.alignment`, then the tensors, each padded to it

Every count and size is compared, as a Python integer, with what is left of the file before anything
is allocated or read. Tensors must tile the data without hole or overlap, as llama.cpp demands too.

Source: https://github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.safetensors_file import TensorInfo

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 << 20  # 262,144 tokens and their merges take 20 MB
MAX_FIELDS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 1 << 16
MAX_STRINGS = 1 << 20  # 262,144 tokens have half a million merges
MAX_DIMS = 4

# Weights of a block, and its bytes, by number and name of the type.
BLOCKS: Mapping[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54),
    "TQ2_0": (256, 66), "MXFP4": (32, 17),
}  # fmt: skip
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 28: "F64",
    30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_SCALARS = ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An opened GGUF file. Made by `open_gguf`.

    Attributes:
        path: its path.
        fields: metadata: int, float, bool, str, a list of str, or an array of numbers.
        infos: each tensor's type, as a key of `BLOCKS`, shape with the outermost size first, and
            place.
        fingerprint: sha256 of the table, the file's size and time.
    """

    path: Path
    fields: Mapping[str, Any]
    infos: Mapping[str, TensorInfo]
    fingerprint: str


def open_gguf(path: Path) -> GgufFile:
    """Read and check a file's table.

    Raises:
        CheckpointError: it is truncated, damaged or hostile.
        UnsupportedError: a version, or a way of storing tensors, that is not known here.
    """
    name = path.name
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{name}: not a regular file")
            reader = _Reader(file, name, status.st_size)
            fields, count = _read_fields(reader)
            infos = _read_infos(reader, path, count, fields, status.st_size)
    except OSError as failure:
        raise CheckpointError(f"{name}: cannot be read: {failure.strerror}") from failure
    reader.digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return GgufFile(path, fields, infos, reader.digest.hexdigest())


def is_gguf(path: Path) -> bool:
    """Return whether a file is GGUF by its name or its first bytes."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".gguf" or file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class _Reader:
    """Takes bytes from the front of a file, never more than it has or a table may have."""

    def __init__(self, file: BufferedReader, name: str, file_bytes: int) -> None:
        self.name = name
        self.digest = hashlib.sha256()
        self.at = 0
        self.strings = 0  # in lists, so far
        self._file = file
        self._end = min(file_bytes, MAX_HEADER_BYTES)

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self._end - self.at:
            raise CheckpointError(
                f"{self.name}: {what} takes {nbytes:,} bytes, but the table has at most "
                f"{self._end - self.at:,} left; the download may be incomplete, or the file damaged"
            )
        data = self._file.read(nbytes)
        if len(data) != nbytes:
            raise CheckpointError(f"{self.name}: became shorter while it was read")
        self.at += nbytes
        self.digest.update(data)
        return data

    def integer(self, nbytes: int, what: str) -> int:
        return int.from_bytes(self.take(nbytes, what), "little")

    def string(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        nbytes = self.integer(8, what)
        if nbytes > most:
            raise CheckpointError(f"{self.name}: {what} of {nbytes:,} bytes, expected {most:,}")
        try:
            return self.take(nbytes, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.name}: {what} is not UTF-8 text") from error


def _read_fields(reader: _Reader) -> tuple[dict[str, Any], int]:
    """Metadata, and how many tensors there are."""
    name = reader.name
    if reader.take(4, "the magic number") != MAGIC:
        raise CheckpointError(
            f"{name}: is not a GGUF file: it does not begin with {MAGIC.decode()}"
        )
    version = reader.integer(4, "the version")
    if version not in (2, 3):
        big = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        hint = "it is big-endian" if big else "convert the original model again"
        raise UnsupportedError(f"{name}: GGUF version {version}, expected 2 or 3; {hint}")
    tensors = reader.integer(8, "the number of tensors")
    count = reader.integer(8, "the number of fields")
    for what, result, most in (("tensors", tensors, MAX_TENSORS), ("fields", count, MAX_FIELDS)):
        if result > most:
            raise CheckpointError(f"{name}: {result:,} {what}, expected at most {most:,}")
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = reader.string("a field's name", MAX_NAME_BYTES)
        if key in fields:
            raise CheckpointError(f"{name}: field {key!r:.80} is there twice")
        fields[key] = _read_value(reader, f"field {key!r:.80}")
    return fields, tensors


def _read_value(reader: _Reader, what: str) -> Any:
    kind = reader.integer(4, what)
    if kind == _ARRAY:
        kind, count = reader.integer(4, what), reader.integer(8, what)
        if kind == _STRING:
            reader.strings += count
            if reader.strings > MAX_STRINGS:
                raise CheckpointError(
                    f"{reader.name}: {what} has {count:,} strings, expected at most "
                    f"{MAX_STRINGS:,} in all fields"
                )
            return [reader.string(what) for _ in range(count)]
        dtype = _dtype(reader, kind, what)
        return np.frombuffer(reader.take(count * dtype.itemsize, what), dtype)
    if kind == _STRING:
        return reader.string(what)
    dtype = _dtype(reader, kind, what)
    value = np.frombuffer(reader.take(dtype.itemsize, what), dtype)[0]
    # As it was written, 1e-05, rather than the nearest float32, 9.999999747378752e-06.
    return float(str(value)) if dtype == np.float32 else value.item()


def _dtype(reader: _Reader, kind: int, what: str) -> np.dtype[Any]:
    result = _SCALARS[kind] if kind < len(_SCALARS) else None
    if result is None:
        raise CheckpointError(f"{reader.name}: {what} has type {kind}, which GGUF does not know")
    return np.dtype(result)


def _read_infos(
    reader: _Reader, path: Path, count: int, fields: Mapping[str, Any], file_bytes: int
) -> dict[str, TensorInfo]:
    name = reader.name
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment % 8:
        raise CheckpointError(f"{name}: general.alignment is {alignment!r:.20}, expected 8, 16, ..")
    if fields.get("split.count", 0) not in (0, 1):
        raise UnsupportedError(
            f"{name}: is one of {fields['split.count']} parts; join them with llama-gguf-split "
            "--merge"
        )
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(count):
        tensor = reader.string("a tensor's name", MAX_NAME_BYTES)
        if tensor in entries:
            raise CheckpointError(f"{name}: tensor {tensor!r:.80} is there twice")
        entries[tensor] = _read_info(reader, f"tensor {tensor!r:.80}")
    at = start = -(-reader.at // alignment) * alignment
    infos = {}
    for tensor, (kind, shape, offset) in sorted(entries.items(), key=lambda item: item[1][2]):
        weights, block_bytes = BLOCKS[kind]
        nbytes = math.prod(shape) // weights * block_bytes
        if start + offset != at:
            fault = "overlaps the one before it" if start + offset < at else "leaves a hole"
            raise CheckpointError(f"{name}: tensor {tensor!r:.80} {fault}; download the file again")
        if at + nbytes > file_bytes:
            raise CheckpointError(
                f"{name}: tensor {tensor!r:.80} ends at byte {at + nbytes:,} of a file of "
                f"{file_bytes:,}; the download may be incomplete"
            )
        infos[tensor] = TensorInfo(kind, shape, path, at, nbytes)
        at += -(-nbytes // alignment) * alignment
    if file_bytes > at:
        raise CheckpointError(f"{name}: {file_bytes - at:,} bytes after the last tensor")
    return infos


def _read_info(reader: _Reader, what: str) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and offset of a tensor."""
    dims = reader.integer(4, what)
    if not 1 <= dims <= MAX_DIMS:
        raise CheckpointError(f"{reader.name}: {what} has {dims} dimensions, expected 1 to 4")
    shape = tuple(reader.integer(8, what) for _ in range(dims))[::-1]
    number = reader.integer(4, what)
    offset = reader.integer(8, what)
    kind = _TYPES.get(number)
    if kind is None:
        raise UnsupportedError(
            f"{reader.name}: {what} is stored as type {number}, expected one of {', '.join(BLOCKS)}"
        )
    if 0 in shape or shape[-1] % BLOCKS[kind][0]:
        raise CheckpointError(
            f"{reader.name}: {what} has shape {list(shape)}, but {kind} holds rows of a multiple "
            f"of {BLOCKS[kind][0]}"
        )
    return kind, shape, offset
