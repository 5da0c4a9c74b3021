"""A lease on a file: whoever wants to cut or overwrite it waits until the lease is given back.

A page beyond the end of a cut file cannot be read from a mapping; the process gets SIGBUS, also for
private mappings. On Linux, a read lease makes `open` for writing and `truncate` wait for its
holder, 45 s at most. It is taken for one step at a time, so that nobody waits for longer than that,
and replaces no check of the file's size: that comes after it. Nothing can be leased that belongs to
another user, lies on a network file system, or is open for writing already.

Source: fcntl(2), "Leases"; Linux, fs/locks.c: giving a lease back resets F_SETSIG, and the default
signal, SIGIO, ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

if sys.platform == "linux":
    import fcntl

_F_SETSIG = 10  # not in Python's fcntl before 3.14
_WAIT_S = 0.5


class Lease:
    """Takes and gives back a lease on one file; does nothing where there are none."""

    def __init__(self, path: Path) -> None:
        """Open the file; it stays open until `close`."""
        self._descriptor: int | None = None
        self._kept_open = False
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def take(self) -> bool:
        """Return whether the file cannot be changed until `give_back`.

        A file that is just being cut is not leased, and still has its old size: this waits until
        that is over. Whoever keeps it open for writing is waited for once.
        """
        if sys.platform == "linux" and self._descriptor is not None:
            until = time.monotonic() + (0.0 if self._kept_open else _WAIT_S)
            while True:
                try:
                    fcntl.fcntl(self._descriptor, _F_SETSIG, signal.SIGURG)  # ignored by default
                    fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                except BlockingIOError:
                    self._kept_open = time.monotonic() >= until
                    if self._kept_open:
                        return False
                    time.sleep(0.001)
                except OSError:
                    return False
                else:
                    self._kept_open = False
                    return True
        return False

    def give_back(self) -> None:
        """End the lease; without one, do nothing."""
        if sys.platform == "linux" and self._descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def close(self) -> None:
        """Give back the lease and close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
