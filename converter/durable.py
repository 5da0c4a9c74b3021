"""Write files so that they survive a crash: whole and on the disk, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from edgetok.errors import OutputError


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all: a temporary one, fsync, rename, fsync of the folder.

    Raises:
        OutputError: the disk is full or fails; a former file stays unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise not_written(path, error) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes to an open file."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def not_written(path: Path, error: OSError) -> OutputError:
    """Return the error for a failed write."""
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error}; what was there before is unchanged "
        "and the same command continues where this one stopped"
    )
