"""Kernels linked into a shared library, which the system loads without numba and LLVM.

It holds what kernels want of a host (`simd/threads.py`), too. `native/kernel_library.py` links it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path


class Library:
    """A loaded library. Keep the object as long as any address is used."""

    def __init__(self, path: Path) -> None:
        """Load it: only where nobody else may have written it.

        Raises:
            OSError: it is for another machine, damaged, or may not be loaded from there.
        """
        self._library = ctypes.CDLL(str(path))

    def get_function_address(self, name: str) -> int:
        """Address of a function; 0 where there is none, as LLVM's engine has it."""
        try:
            function = self._library[name]
        except AttributeError:
            return 0
        return ctypes.cast(function, ctypes.c_void_p).value or 0
