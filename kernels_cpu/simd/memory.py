"""Scalars and vectors from and to memory. See `simd/ops.py`.

Addresses are int64; loads and stores need no alignment.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import (
    _F16,
    _F32,
    _F64,
    _I8,
    _I16,
    _I32,
    _I64,
    F32,
    I32,
    LANES,
    U8,
    _call,
    _extend_f16,
    _first_lanes,
    _load,
    _masked_load,
    _pointer,
    _splat,
    _store,
    _truncate_f16,
    f32,
    f64,
    i32,
    i64,
    op,
    void,
)

# Scalars in memory


@op(i64, i64)
def read_i64(b: Any, address: Any) -> Any:
    """int64 at the address."""
    return _load(b, address, _I64)


@op(void, i64, i64)
def write_i64(b: Any, address: Any, value: Any) -> None:
    """Store an int64."""
    _store(b, address, value)


@op(i32, i64)
def read_i32(b: Any, address: Any) -> Any:
    """int32 at the address."""
    return _load(b, address, _I32)


@op(i64, i64)
def read_int(b: Any, address: Any) -> Any:
    """The int32 at the address as int64."""
    return b.sext(_load(b, address, _I32), _I64)


@op(void, i64, i32)
def write_i32(b: Any, address: Any, value: Any) -> None:
    """Store an int32."""
    _store(b, address, value)


@op(i64, i64)
def read_u8(b: Any, address: Any) -> Any:
    """uint8 at the address, as int64."""
    return b.zext(_load(b, address, _I8), _I64)


@op(i64, i64)
def read_u16(b: Any, address: Any) -> Any:
    """uint16 at the address, as int64."""
    return b.zext(_load(b, address, _I16), _I64)


@op(void, i64, i64)
def write_u16(b: Any, address: Any, value: Any) -> None:
    """Store the low 16 bits."""
    _store(b, address, b.trunc(value, _I16))


@op(f32, i64)
def read_f32(b: Any, address: Any) -> Any:
    """float32 at the address."""
    return _load(b, address, _F32)


@op(void, i64, f32)
def write_f32(b: Any, address: Any, value: Any) -> None:
    """Store a float32."""
    _store(b, address, value)


@op(f64, i64)
def read_f64(b: Any, address: Any) -> Any:
    """float64 at the address."""
    return _load(b, address, _F64)


@op(void, i64, f64)
def write_f64(b: Any, address: Any, value: Any) -> None:
    """Store a float64."""
    _store(b, address, value)


@op(f32, i64)
def read_f16(b: Any, address: Any) -> Any:
    """float16 at the address, widened."""
    return _extend_f16(b, _load(b, address, _F16))


@op(void, i64, f32)
def write_f16(b: Any, address: Any, value: Any) -> None:
    """Store as float16, rounded to nearest even."""
    _store(b, address, _truncate_f16(b, value))


@op(f32, i64)
def f32_from_bits(b: Any, bits: Any) -> Any:
    """The float32 whose bits are the low 32 of an int64."""
    return b.bitcast(b.trunc(bits, _I32), _F32)


# Vectors in memory


@op(U8, i64)
def load_u8(b: Any, address: Any) -> Any:
    """VB bytes."""
    return _load(b, address, U8.ll)


@op(void, i64, U8)
def store_u8(b: Any, address: Any, value: Any) -> None:
    """VB bytes."""
    _store(b, address, value)


@op(F32, i64)
def load_f32(b: Any, address: Any) -> Any:
    """LANES float32."""
    return _load(b, address, F32.ll)


@op(F32, i64, i64)
def load_f32_first(b: Any, address: Any, count: Any) -> Any:
    """The first `count` float32 (0..LANES), zeros after them."""
    return _masked_load(b, address, count, _F32, LANES)


@op(F32, i64, i64)
def gather_f32(b: Any, address: Any, stride: Any) -> Any:
    """LANES float32, each `stride` bytes after the one before."""
    value = ir.Constant(F32.ll, ir.Undefined)
    for i in range(LANES):
        value = b.insert_element(value, _load(b, address, _F32), ir.Constant(_I32, i))
        address = b.add(address, stride)
    return value


@op(void, i64, F32)
def store_f32(b: Any, address: Any, value: Any) -> None:
    """LANES float32."""
    _store(b, address, value)


@op(void, i64, F32, i64)
def store_f32_first(b: Any, address: Any, value: Any, count: Any) -> None:
    """The first `count` lanes only."""
    _call(
        b,
        f"llvm.masked.store.v{LANES}f32.p0",
        ir.VoidType(),
        value,
        _pointer(b, address, F32.ll),
        ir.Constant(_I32, 1),
        _first_lanes(b, count, LANES),
    )


@op(I32, i64)
def load_i32(b: Any, address: Any) -> Any:
    """LANES int32."""
    return _load(b, address, I32.ll)


@op(F32, i64)
def load_f16(b: Any, address: Any) -> Any:
    """LANES float16, widened."""
    return _extend_f16(b, _load(b, address, ir.VectorType(_F16, LANES)))


@op(void, i64, F32)
def store_f16(b: Any, address: Any, value: Any) -> None:
    """LANES float16, rounded to nearest even."""
    _store(b, address, _truncate_f16(b, value))


@op(void, i64, I32)
def store_i32_u8(b: Any, address: Any, value: Any) -> None:
    """The low 8 bits of LANES int32."""
    _store(b, address, b.trunc(value, ir.VectorType(_I8, LANES)))


@op(void, i64, I32, i64)
def scatter_i32_u8(b: Any, address: Any, value: Any, stride: Any) -> None:
    """The low 8 bits of LANES int32, each 4 of them `stride` bytes after the 4 before."""
    words = b.bitcast(b.trunc(value, ir.VectorType(_I8, LANES)), ir.VectorType(_I32, LANES // 4))
    for i in range(LANES // 4):
        _store(b, address, b.extract_element(words, ir.Constant(_I32, i)))
        address = b.add(address, stride)


@op(U8, i64)
def broadcast_i32(b: Any, address: Any) -> Any:
    """4 bytes, repeated over the whole vector."""
    return b.bitcast(_splat(b, _load(b, address, _I32), LANES), U8.ll)


@op(void, i64)
def prefetch(b: Any, address: Any) -> None:
    """Ask for the cache line of an address that will be read soon; harmless anywhere."""
    pointer = _pointer(b, address, _I8)
    flags = [ir.Constant(_I32, n) for n in (0, 3, 1)]
    _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, *flags)
