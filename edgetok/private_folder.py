"""Folders that only their owner may write, and files that nobody else could have written."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgetok.errors import OutputError


def private_folder(folder: Path, holds: str, variable: str = "EDGETOK_CACHE_DIR") -> Path:
    """Return the folder, created if it is missing. Its contents (code, text) are trusted.

    Args:
        folder: where.
        holds: what it is for, in the plural, as the errors call it.
        variable: environment variable that names another one.

    Raises:
        OutputError: it is not a directory or cannot be made, or somebody else may write it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot hold {holds}: {error.strerror}; name another with {variable}"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError(
            f"{folder}: expected a directory for {holds}, found a file; "
            f"name another with {variable}"
        )
    if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise OutputError(
            f"{folder}: others own or may write this directory of {holds}; "
            f"remove it or name another with {variable}"
        )
    return folder


def writable_by_others(status: os.stat_result, like: os.stat_result | None = None) -> bool:
    """Return whether anybody but this user and root may write a file or folder.

    Args:
        status: status of the file or folder.
        like: of a folder whose contents are trusted anyway: what may be as open as it is.
    """
    if os.name != "posix":
        return False
    owners, open_bits = {os.getuid(), 0}, stat.S_IWGRP | stat.S_IWOTH
    if like is not None:
        owners.add(like.st_uid)
        same_group = like.st_gid == status.st_gid
        open_bits &= ~(like.st_mode if same_group else like.st_mode & stat.S_IWOTH)
    return status.st_uid not in owners or bool(status.st_mode & open_bits)
