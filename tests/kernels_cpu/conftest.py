"""Kernels of every instruction set that this machine runs, and buffers between guard pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgetok.kernels_cpu.program.loader import MODULES, Kernels, load
from edgetok.kernels_cpu.simd.isa import ISAS, host_isas

_PAGE = mmap.PAGESIZE
_LOADED: dict[tuple[str, tuple[str, ...]], Kernels] = {}


def _load(name: str, cache: Path, request: pytest.FixtureRequest) -> Kernels:
    """A test module that names its MODULES compiles only those."""
    modules = tuple(getattr(request.module, "MODULES", MODULES))
    if (name, modules) not in _LOADED:
        _LOADED[name, modules] = load(ISAS[name], cache, modules=modules)
    return _LOADED[name, modules]


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest, kernel_cache: Path) -> Kernels:
    """Kernels of the best instruction set here."""
    return _load(host_isas()[0], kernel_cache, request)


@pytest.fixture(scope="module", params=host_isas())
def each_kernels(request: pytest.FixtureRequest, kernel_cache: Path) -> Kernels:
    """Kernels of every instruction set that this machine runs, one after the other."""
    return _load(request.param, kernel_cache, request)


class Guard:
    """Copies of arrays that end (or begin) at a page which may not be touched."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def __call__(
        self, array: npt.NDArray[np.generic], at_end: bool = True
    ) -> npt.NDArray[np.generic]:
        """A copy of `array` whose last (first) byte borders on a guard page, both sides guarded."""
        inside = -(-max(array.nbytes, 1) // _PAGE) * _PAGE
        area = mmap.mmap(-1, inside + 2 * _PAGE)
        self._maps.append(area)
        base = np.frombuffer(area, np.uint8)
        start = _PAGE + (inside - array.nbytes if at_end else 0)
        copy = base[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        for page in (base.ctypes.data, base.ctypes.data + _PAGE + inside):
            if self._protect(page, _PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        return copy

    def close(self) -> None:
        """Make the pages ordinary again, so that they can be unmapped."""
        for area in self._maps:
            base = np.frombuffer(area, np.uint8)
            self._protect(base.ctypes.data, base.nbytes, 3)


@pytest.fixture
def guard() -> Guard:
    """Puts arrays between pages that must not be touched; a kernel that strays ends the process."""
    made = Guard()
    yield made
    made.close()


Run = Callable[..., None]


@pytest.fixture
def run() -> Run:
    """Runs one instruction for `threads` threads, one after the other: it has no barrier inside."""

    def run(
        kernels: Kernels, instruction: npt.NDArray[np.int64], tokens: int, threads: int = 1
    ) -> None:
        ctx = np.zeros(32, np.int64)
        ctx[0] = tokens
        call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(int(instruction[0]))
        for tid in range(threads):
            call(instruction.ctypes.data, ctx.ctypes.data, tid, threads)

    return run
