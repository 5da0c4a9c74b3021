"""Atomics, waiting, and calls: what a team of threads needs. See `simd/ops.py`."""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import _I32, _I64, NAME, _call, _pointer, i64, op, void


@op(i64, i64, i64)
def atomic_add(b: Any, address: Any, value: Any) -> Any:
    """Add to an int64 (8-aligned), acquire and release; returns the value before."""
    return b.atomic_rmw("add", _pointer(b, address, _I64), value, "acq_rel")


@op(i64, i64)
def atomic_load(b: Any, address: Any) -> Any:
    """int64 (8-aligned), acquire."""
    return b.load_atomic(_pointer(b, address, _I64), "acquire", 8)


@op(void, i64, i64)
def atomic_store(b: Any, address: Any, value: Any) -> None:
    """int64 (8-aligned), release."""
    b.store_atomic(value, _pointer(b, address, _I64), "release", 8)


@op(i64, i64, i64, i64)
def atomic_replace(b: Any, address: Any, old: Any, new: Any) -> Any:
    """Store `new` where the int64 (8-aligned) is `old`; 1 where it was, else 0."""
    pair = b.cmpxchg(_pointer(b, address, _I64), old, new, "acq_rel", "acquire")
    return b.zext(b.extract_value(pair, 1), _I64)


@op(void)
def pause(b: Any) -> None:
    """Tell the core that this is a spin loop."""
    if NAME.startswith("avx"):
        _call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif NAME == "neon":
        _call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(_I32, 1))


@op(void)
def sched_yield(b: Any) -> None:
    """Let another thread have this core (POSIX; the one symbol that kernels need from outside)."""
    _call(b, "sched_yield", _I32)


# A futex lets a thread sleep until a word changes, without Python and without losing a wake-up.
_MACHINE = "aarch64" if NAME == "neon" else platform.machine().lower()
_FUTEX_NUMBER = {"x86_64": 202, "amd64": 202, "aarch64": 98, "arm64": 98}.get(_MACHINE)
_HAS_FUTEX = sys.platform.startswith("linux") and _FUTEX_NUMBER is not None
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_NAP_US = 500


def _futex(b: Any, address: Any, operation: int, value: Any) -> None:
    arguments = [
        ir.Constant(_I64, _FUTEX_NUMBER),
        address,
        ir.Constant(_I64, operation),
        value,
        *[ir.Constant(_I64, 0)] * 3,
    ]
    _call(b, "syscall", _I64, *arguments)


@op(void, i64, i64)
def sleep_while_equal(b: Any, address: Any, value: Any) -> None:
    """Sleep while the int64 at the address (8-aligned, little-endian) is `value`; may wake early.

    Where the system has no futex this sleeps a fixed time, so callers loop either way.
    """
    if _HAS_FUTEX:
        _futex(b, address, _WAIT_PRIVATE, b.and_(value, ir.Constant(_I64, 0xFFFFFFFF)))
    else:
        _call(b, "usleep", _I32, ir.Constant(_I32, _NAP_US))


@op(void, i64)
def wake_sleepers(b: Any, address: Any) -> None:
    """Wake every thread that sleeps at the address."""
    if _HAS_FUTEX:
        _futex(b, address, _WAKE_PRIVATE, ir.Constant(_I64, 0x7FFFFFFF))


@op(i64)
def ticks(b: Any) -> Any:
    """The core's cycle or time-stamp counter, for profiles."""
    if NAME == "neon":  # LLVM's cycle counter is not for programs there; the timer is
        name = "llvm.read_volatile_register.i64"
        kind = ir.FunctionType(_I64, [ir.MetaDataType()])
        read = b.module.globals.get(name) or ir.Function(b.module, kind, name)
        return b.call(read, [b.module.add_metadata(["cntvct_el0"])])
    return _call(b, "llvm.readcyclecounter", _I64)


@op(void, i64, i64, i64, i64, i64)
def call_kernel(b: Any, address: Any, instr: Any, ctx: Any, tid: Any, threads: Any) -> None:
    """Call a kernel by its address."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
    b.call(b.inttoptr(address, kind.as_pointer()), [instr, ctx, tid, threads])
