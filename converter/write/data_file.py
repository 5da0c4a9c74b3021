"""Write `model.onnx.data`: the file at its full size, each tensor at its place in any order.

The arithmetic is in `edgetok.formats.layout`, which the reader shares; its names are repeated here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.errors import OutputError, ShapeError
from edgetok.formats.layout import (
    ALIGNMENT_BYTES,
    DATA_FILE,
    Layout,
    LinearShape,
    TensorFormat,
    TensorSlot,
    linear_shapes,
    linear_tensors,
    plan,
)

__all__ = [
    "ALIGNMENT_BYTES",
    "DATA_FILE",
    "DataFile",
    "Layout",
    "LinearShape",
    "TensorFormat",
    "TensorSlot",
    "linear_shapes",
    "linear_tensors",
    "plan",
]


class DataFile:
    """The data file of an artefact that is being written. A context manager.

    Opening creates the file, or continues one of the right size, and reserves all its blocks, so
    that a full disk shows before hours of work rather than after.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        """Open for writing.

        Raises:
            OutputError: the file cannot be made or the disk has not room enough.
        """
        self._path = path
        self._layout = layout
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            if os.fstat(self._fd).st_size != layout.file_bytes:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, layout.file_bytes)
            _reserve(self._fd, layout.file_bytes)
        except OSError as error:
            os.close(self._fd)
            raise OutputError(
                f"{path}: not enough space for {layout.file_bytes:,} bytes: {error.strerror}; free "
                "some space or choose another folder"
            ) from error

    def write(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Write one tensor at its place.

        Raises:
            ShapeError: `values` are not of the dtype and shape that the layout gives `name`.
            OutputError: the disk is full or fails.
        """
        slot = self._layout.tensors.get(name) or self._layout.constants[name]
        # The embedding's codes come from the packer as groups and are stored as a matrix.
        shape = (len(values), -1) if values.ndim == 3 and len(slot.shape) == 2 else values.shape
        values = values.reshape(shape)
        if values.dtype != np.dtype(slot.dtype) or values.shape != slot.shape:
            raise ShapeError(
                f"{name} is {values.dtype} {values.shape}, expected {slot.dtype} {slot.shape}"
            )
        rest = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        offset = slot.offset
        try:
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                offset, rest = offset + written, rest[written:]
        except OSError as error:
            raise OutputError(f"{self._path}: {name} not written: {error.strerror}") from error

    def sync(self) -> None:
        """Wait until what was written is on the disk.

        Raises:
            OutputError: the disk fails.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise OutputError(f"{self._path}: not written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _reserve(descriptor: int, nbytes: int) -> None:
    """Reserve blocks on the disk, if the file system supports it."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
