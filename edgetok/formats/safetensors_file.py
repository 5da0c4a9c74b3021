"""Read a safetensors file strictly: its table is checked before a byte of a tensor is read.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import CheckpointError
from edgetok.formats import strict_json
from edgetok.formats.lfs import BEGINS, LEFT_OUT

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS_IN_SHARD = 1 << 16
MAX_DIMS = 8

_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_LFS_POINTER = BEGINS[:8]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The place of a tensor in a file.

    Attributes:
        dtype: as safetensors names it.
        shape: as stored.
        path: the shard.
        begin: offset of the first byte from the start of the file.
        nbytes: the tensor's size.
    """

    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    nbytes: int


def read_header(path: Path, digest: hashlib._Hash) -> dict[str, TensorInfo]:
    """Read and check the table of one safetensors file.

    Args:
        path: the file.
        digest: updated with the file's name, size, time and table.

    Returns:
        Dtype, shape and place of each tensor by name.

    Raises:
        CheckpointError: the file is missing, damaged or hostile.
    """
    name = path.name
    try:
        # A shard in the hub's cache is a link to a blob; what it leads to must be a plain file.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{name}: not a regular file")
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(f"{name}: {status.st_size} bytes are not a safetensors file")
            if prefix == _LFS_POINTER:
                raise CheckpointError(f"{name}: {LEFT_OUT}")
            (header_bytes,) = struct.unpack("<Q", prefix)
            if header_bytes > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{name}: header of {header_bytes:,} bytes, expected at most "
                    f"{MAX_HEADER_BYTES:,}; not a safetensors file or a hostile one"
                )
            if 8 + header_bytes > status.st_size:
                raise CheckpointError(
                    f"{name}: header of {header_bytes:,} bytes in a file of {status.st_size:,}; "
                    "the download may be incomplete"
                )
            header = file.read(header_bytes)
    except OSError as failure:
        raise CheckpointError(f"{name}: cannot be read: {failure.strerror}") from failure
    digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode() + header)
    table = strict_json.loads_object(
        header,
        f"{name}: header",
        max_bytes=MAX_HEADER_BYTES,
        max_keys=5 * MAX_TENSORS_IN_SHARD,  # a name, three fields, and some metadata
    )
    table.pop("__metadata__", None)
    if len(table) > MAX_TENSORS_IN_SHARD:
        raise CheckpointError(
            f"{name}: {len(table):,} tensors, expected at most {MAX_TENSORS_IN_SHARD:,}"
        )
    start = 8 + header_bytes
    infos = {tensor: _read_entry(path, start, tensor, entry) for tensor, entry in table.items()}
    _require_contiguous(name, start, status.st_size, infos)
    return infos


def _read_entry(path: Path, start: int, tensor: str, entry: Any) -> TensorInfo:
    what = f"{path.name}: tensor {tensor!r:.200}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{what}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise CheckpointError(f"{what}: unknown dtype {dtype!r:.40}")
    if not _naturals(shape) or len(shape) > MAX_DIMS:
        raise CheckpointError(f"{what}: shape {shape!r:.80} is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{what}: data_offsets {offsets!r:.80} are not a begin and an end")
    nbytes = math.prod(shape) * _SIZES[dtype]
    if nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{what}: shape does not match bytes: {dtype} {shape!r:.80} needs {nbytes:,}, "
            f"data_offsets hold {offsets[1] - offsets[0]:,}"
        )
    return TensorInfo(dtype, tuple(shape), path, start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _require_contiguous(
    name: str, start: int, file_bytes: int, infos: Mapping[str, TensorInfo]
) -> None:
    """Tensors must tile the data exactly: no hole, no overlap, nothing before or after."""
    at = start
    for tensor, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        end = info.begin + info.nbytes
        if end > file_bytes:
            raise CheckpointError(
                f"{name}: tensor {tensor!r} ends at byte {end:,} of a file of {file_bytes:,}; "
                "the download may be incomplete"
            )
        if info.begin != at:
            fault = "overlaps the one before it" if info.begin < at else "leaves a hole before it"
            raise CheckpointError(f"{name}: tensor {tensor!r} {fault}; download the file again")
        at = end
    if at != file_bytes:
        raise CheckpointError(
            f"{name}: {file_bytes - at:,} bytes after the last tensor; download the file again"
        )


def read_bytes(info: TensorInfo, rows: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read a tensor of single bytes, or rows `rows[0]` to `rows[1] - 1` of it.

    Raises:
        CheckpointError: the file is shorter, or cannot be read.
    """
    first, end = rows or (0, 0)
    raw = np.empty(info.shape if rows is None else (end - first, *info.shape[1:]), np.uint8)
    read_exactly(info.path, info.begin + first * math.prod(info.shape[1:]), raw.reshape(-1))
    return raw


def read_exactly(path: Path, begin: int, into: npt.NDArray[np.uint8]) -> None:
    """Fill `into` with the bytes of a file from `begin` on.

    Raises:
        CheckpointError: the file is shorter, or cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            view = into.data
            while view:
                count = file.readinto(view)
                if not count:
                    raise CheckpointError(f"{path.name}: became shorter while it was read")
                view = view[count:]
    except OSError as failure:
        raise CheckpointError(f"{path.name}: cannot be read: {failure.strerror}") from failure
