"""Pointers that Git LFS leaves where it did not fetch a file.

Source: github.com/git-lfs/git-lfs, docs/spec.md.
"""

from __future__ import annotations

from pathlib import Path

LEFT_OUT = "only points to the file, which Git LFS left out; run `git lfs pull` in its folder"
MAX_BYTES = 1024
BEGINS = b"version https://git-lfs.github.com/spec/"


def is_pointer(data: bytes) -> bool:
    """Return whether the bytes of a file, or its first ones, are a pointer."""
    return data.startswith(BEGINS)


def points(path: Path) -> bool:
    """Return whether a file is a pointer; False where it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return False
        with path.open("rb") as file:
            return is_pointer(file.read(len(BEGINS)))
    except OSError:
        return False
