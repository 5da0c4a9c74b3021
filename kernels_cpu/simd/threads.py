"""Atomics, waiting, and calls: what a team of threads needs. See `simd/ops.py`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import _I32, _I64, ARCH, _call, _pointer, i64, op, void


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
    if ARCH == "x86_64":
        _call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif ARCH == "aarch64":
        _call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(_I32, 1))


# What a host of the kernels must define. The loader does it for Python (`program/waiting.py`); C:
#
#     void edgetok_wait(int64_t address, int64_t value);
#     void edgetok_wake(int64_t address);
#     void edgetok_yield(void);


@op(void, i64, i64)
def sleep_while_equal(b: Any, address: Any, value: Any) -> None:
    """Sleep while the low 32 bits of the int64 at the address (8-aligned) are those of `value`.

    Comparing and falling asleep are one step: a wake-up after the word has changed is never lost. A
    sleeper may also wake for no reason, so callers loop.
    """
    _call(b, "edgetok_wait", ir.VoidType(), address, value)


@op(void, i64)
def wake_sleepers(b: Any, address: Any) -> None:
    """Wake every thread that sleeps at the address."""
    _call(b, "edgetok_wake", ir.VoidType(), address)


@op(void)
def yield_core(b: Any) -> None:
    """Let another thread have this core."""
    _call(b, "edgetok_yield", ir.VoidType())


@op(i64)
def ticks(b: Any) -> Any:
    """The core's cycle or time-stamp counter, for profiles."""
    if ARCH == "aarch64":  # LLVM's cycle counter is not for programs there; the timer is
        name = "llvm.read_volatile_register.i64"
        kind = ir.FunctionType(_I64, [ir.MetaDataType()])
        read = b.module.globals.get(name) or ir.Function(b.module, kind, name)
        return b.call(read, [b.module.add_metadata(["cntvct_el0"])])
    if ARCH == "wasm32":  # there is none
        return ir.Constant(_I64, 0)
    return _call(b, "llvm.readcyclecounter", _I64)


@op(void, i64, i64, i64, i64, i64)
def call_kernel(b: Any, address: Any, instr: Any, ctx: Any, tid: Any, threads: Any) -> None:
    """Call a kernel by its address."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
    b.call(b.inttoptr(address, kind.as_pointer()), [instr, ctx, tid, threads])
