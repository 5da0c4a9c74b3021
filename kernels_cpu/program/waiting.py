"""How threads wait on this operating system: the functions that compiled kernels leave to a host.

`edgetok_wait`, `edgetok_wake` and `edgetok_yield` (`simd/threads.py`) in LLVM's language, calling
the system's own functions by their addresses in this process: no Python runs in them and none holds
the GIL. They are compiled when kernels are loaded, in a few milliseconds.

| system  | wait               | wake               | yield          |
|---------|--------------------|--------------------|----------------|
| Linux   | futex              | futex              | sched_yield    |
| macOS   | __ulock_wait       | __ulock_wake       | sched_yield    |
| Windows | WaitOnAddress      | WakeByAddressAll   | SwitchToThread |
| others  | sleeps for 0.5 ms  | nothing            | sched_yield    |
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

_FUTEX_NUMBER = {"x86_64": 202, "amd64": 202}  # elsewhere as in asm-generic/unistd.h
_FUTEX_GENERIC = 98
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_ALL = 0x7FFFFFFF
# XNU, bsd/sys/ulock.h: UL_COMPARE_AND_WAIT, ULF_WAKE_ALL, ULF_NO_ERRNO.
_ULOCK_WAIT = 0x01000001
_ULOCK_WAKE = 0x01000101

_LINUX = """
define void @edgetok_wait(i64 %address, i64 %value) {{
  %word = and i64 %value, 4294967295
  %call = inttoptr i64 {syscall} to i64 (i64, i64, i64, i64, i64, i64, i64)*
  %r = call i64 %call(i64 {number}, i64 %address, i64 {wait}, i64 %word, i64 0, i64 0, i64 0)
  ret void
}}
define void @edgetok_wake(i64 %address) {{
  %call = inttoptr i64 {syscall} to i64 (i64, i64, i64, i64, i64, i64, i64)*
  %r = call i64 %call(i64 {number}, i64 %address, i64 {wake}, i64 {all}, i64 0, i64 0, i64 0)
  ret void
}}
"""
_MACOS = """
define void @edgetok_wait(i64 %address, i64 %value) {{
  %word = and i64 %value, 4294967295
  %call = inttoptr i64 {wait} to i32 (i32, i64, i64, i32)*
  %r = call i32 %call(i32 {wait_kind}, i64 %address, i64 %word, i32 0)
  ret void
}}
define void @edgetok_wake(i64 %address) {{
  %call = inttoptr i64 {wake} to i32 (i32, i64, i64)*
  %r = call i32 %call(i32 {wake_kind}, i64 %address, i64 0)
  ret void
}}
"""
_WINDOWS = """
@_fltused = global i32 0
define void @edgetok_wait(i64 %address, i64 %value) {{
  %word = alloca i64
  store i64 %value, i64* %word
  %call = inttoptr i64 {wait} to i32 (i64, i64*, i64, i32)*
  %r = call i32 %call(i64 %address, i64* %word, i64 4, i32 -1)
  ret void
}}
define void @edgetok_wake(i64 %address) {{
  %call = inttoptr i64 {wake} to void (i64)*
  call void %call(i64 %address)
  ret void
}}
"""
_OTHERS = """
define void @edgetok_wait(i64 %address, i64 %value) {{
  %call = inttoptr i64 {usleep} to i32 (i32)*
  %r = call i32 %call(i32 500)
  ret void
}}
define void @edgetok_wake(i64 %address) {{
  ret void
}}
"""
_YIELD = """
define void @edgetok_yield() {{
  %call = inttoptr i64 {yield_} to i32 ()*
  %r = call i32 %call()
  ret void
}}
"""


def waiting_code(system: str = sys.platform, address: Callable[[str], int] | None = None) -> str:
    """LLVM's code of the three functions.

    Args:
        system: as `sys.platform` calls it.
        address: where a function of the system's libraries is; None looks it up in this process.
    """
    at = address or _address
    if system.startswith("linux"):
        machine = platform.machine().lower()
        number = _FUTEX_NUMBER.get(machine, _FUTEX_GENERIC)
        wait = _LINUX.format(
            syscall=at("syscall"), number=number, wait=_WAIT_PRIVATE, wake=_WAKE_PRIVATE, all=_ALL
        )
    elif system == "darwin":
        wait = _MACOS.format(
            wait=at("__ulock_wait"),
            wake=at("__ulock_wake"),
            wait_kind=_ULOCK_WAIT,
            wake_kind=_ULOCK_WAKE,
        )
    elif system == "win32":
        wait = _WINDOWS.format(wait=at("WaitOnAddress"), wake=at("WakeByAddressAll"))
    else:
        wait = _OTHERS.format(usleep=at("usleep"))
    own = "SwitchToThread" if system == "win32" else "sched_yield"
    return wait + _YIELD.format(yield_=at(own))


def _address(name: str) -> int:
    """Where one of the system's functions is in this process."""
    library: Any
    if sys.platform == "win32":
        in_kernel = name == "SwitchToThread"
        library = ctypes.WinDLL("kernel32" if in_kernel else "api-ms-win-core-synch-l1-2-0")
    else:
        library = ctypes.CDLL(None)
    found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    if not found:
        raise OSError(f"the system has no function {name}")
    return found
