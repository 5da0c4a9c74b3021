"""Explicit SIMD for kernels written in Python: vector types and operations on addresses.

A kernel written over this layer compiles for every instruction set in `isa.py`: the vector width
and the integer dot product are chosen when this module is imported, by `isa_of_this_build`. One
process builds for one instruction set (see `build.py`).

Types: U8 (VB lanes of 8 bits), I32 and F32 (LANES lanes). Addresses are int64; loads and stores
need no alignment. Names follow LLVM's. Every operation below is one or a few machine instructions.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from edgetok.kernels_cpu.build_target import isa_of_this_build

ISA = isa_of_this_build()
NAME = ISA.name
VB = ISA.vector_bytes
LANES = ISA.lanes

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32, _F16, _F64 = ir.FloatType(), ir.HalfType(), ir.DoubleType()


class Vec(types.Type):  # type: ignore[misc]
    """A Numba type whose values are LLVM vectors of `lanes` elements."""

    def __init__(self, element: ir.Type, lanes: int) -> None:
        self.ll = ir.VectorType(element, lanes)
        super().__init__(name=f"Vec({element}x{lanes})")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vec.ll)


U8 = Vec(_I8, VB)
I32 = Vec(_I32, LANES)
F32 = Vec(_F32, LANES)


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper into its callers."""
    return njit(error_model="numpy", forceinline=True)(function)


def outline(function: Callable[..., Any]) -> Any:
    """Compile a helper on its own, where a copy in each caller would cost too much code."""
    return njit(error_model="numpy")(function)


i64 = types.int64
i32 = types.int32
f32 = types.float32
void = types.void


# Numba counts the parameters of a typing function, so there is one for each number of operands.
_ARITY: dict[int, Callable[[Callable[[], Any]], Any]] = {
    count: eval("lambda typed: lambda " + ", ".join(["_", *"abcdefghijkl"[:count]]) + ": typed()")
    for count in range(13)
}


def op(result: Any, *params: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of fixed types from `emit(builder, *values) -> value` (None for void)."""

    def wrap(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Sequence[Any]) -> Any:
            value = emit(builder, *args)
            return context.get_dummy_value() if value is None else value

        signature = result(*params)
        typing = _ARITY[len(params)](lambda: (signature, codegen))
        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        made = intrinsic(typing)
        made.emit = emit  # for operations that are made of others
        return made

    return wrap


def _pointer(b: Any, address: Any, element: ir.Type) -> Any:
    return b.inttoptr(address, element.as_pointer())


def _load(b: Any, address: Any, element: ir.Type) -> Any:
    return b.load(_pointer(b, address, element), align=1)


def _store(b: Any, address: Any, value: Any) -> None:
    b.store(value, _pointer(b, address, value.type), align=1)


def _call(b: Any, name: str, result: ir.Type, *args: Any, fast: bool = False) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, args, fastmath=("fast",) if fast else ())


def _constant(element: ir.Type, lanes: int, values: Any) -> ir.Constant:
    listed = values if isinstance(values, list) else [values] * lanes
    return ir.Constant(ir.VectorType(element, lanes), listed)


def _shuffle(b: Any, v: Any, index: list[int], other: Any = None) -> Any:
    second = ir.Constant(v.type, ir.Undefined) if other is None else other
    return b.shuffle_vector(v, second, _constant(_I32, len(index), index))


def _splat(b: Any, value: Any, lanes: int) -> Any:
    start = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = b.insert_element(start, value, ir.Constant(_I32, 0))
    return _shuffle(b, one, [0] * lanes)


def _first_lanes(b: Any, count: Any, lanes: int) -> Any:
    """Mask [lanes] of i1, true for lane < count."""
    number = _splat(b, b.trunc(count, _I32), lanes)
    return b.icmp_signed("<", _constant(_I32, lanes, list(range(lanes))), number)


def _masked_load(b: Any, address: Any, count: Any, element: ir.Type, lanes: int) -> Any:
    kind = ir.VectorType(element, lanes)
    suffix = {_I8: "i8", _I32: "i32", _F32: "f32", _I16: "i16"}[element]
    return _call(
        b,
        f"llvm.masked.load.v{lanes}{suffix}.p0",
        kind,
        _pointer(b, address, kind),
        ir.Constant(_I32, 1),
        _first_lanes(b, count, lanes),
        _constant(element, lanes, 0.0 if element is _F32 else 0),
    )


def _like(v: Any, element: ir.Type) -> ir.Type:
    """The type of v, scalar or vector, with other elements."""
    return ir.VectorType(element, v.type.count) if isinstance(v.type, ir.VectorType) else element


def _same(v: Any, value: int) -> ir.Constant:
    """An int32 constant for every lane of v."""
    kind = _like(v, _I32)
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _extend_f16(b: Any, v: Any) -> Any:
    """float16 to float32, scalar or vector, exactly."""
    if NAME != "portable":
        return b.fpext(v, _like(v, _F32))
    # Without the instruction LLVM would call a function that nobody links.
    bits = b.zext(b.bitcast(v, _like(v, _I16)), _like(v, _I32))
    magnitude = b.shl(b.and_(bits, _same(v, 0x7FFF)), _same(v, 13))
    power = b.bitcast(_same(v, (127 + 112) << 23), _like(v, _F32))
    value = b.bitcast(b.fmul(b.bitcast(magnitude, _like(v, _F32)), power), _like(v, _I32))
    top = b.icmp_unsigned(">=", magnitude, _same(v, 0x7C00 << 13))
    value = b.select(top, b.or_(value, _same(v, 0x7F800000)), value)
    sign = b.shl(b.and_(bits, _same(v, 0x8000)), _same(v, 16))
    return b.bitcast(b.or_(value, sign), _like(v, _F32))


def _truncate_f16(b: Any, v: Any) -> Any:
    """float32 to float16, scalar or vector, to nearest even."""
    if NAME != "portable":
        return b.fptrunc(v, _like(v, _F16))
    bits = b.bitcast(v, _like(v, _I32))
    magnitude = b.and_(bits, _same(v, 0x7FFFFFFF))
    half = _same(v, 0x3F000000)  # adding 0.5 leaves a subnormal's rounded bits in the mantissa
    small = b.fadd(b.bitcast(magnitude, _like(v, _F32)), b.bitcast(half, _like(v, _F32)))
    small = b.sub(b.bitcast(small, _like(v, _I32)), half)
    odd = b.and_(b.lshr(magnitude, _same(v, 13)), _same(v, 1))
    rounding = _same(v, 0xFFF - (112 << 23))
    normal = b.lshr(b.add(b.add(magnitude, rounding), odd), _same(v, 13))
    value = b.select(b.icmp_unsigned("<", magnitude, _same(v, 113 << 23)), small, normal)
    nan = b.icmp_unsigned(">", magnitude, _same(v, 0x7F800000))
    beyond = b.select(nan, _same(v, 0x7E00), _same(v, 0x7C00))
    value = b.select(b.icmp_unsigned(">=", magnitude, _same(v, 143 << 23)), beyond, value)
    value = b.or_(value, b.and_(b.lshr(bits, _same(v, 16)), _same(v, 0x8000)))
    return b.bitcast(b.trunc(value, _like(v, _I16)), _like(v, _F16))


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


@op(void, i64, i32)
def write_i32(b: Any, address: Any, value: Any) -> None:
    """Store an int32."""
    _store(b, address, value)


@op(i64, i64)
def read_u8(b: Any, address: Any) -> Any:
    """uint8 at the address, as int64."""
    return b.zext(_load(b, address, _I8), _I64)


@op(void, i64, i64)
def write_u8(b: Any, address: Any, value: Any) -> None:
    """Store the low 8 bits."""
    _store(b, address, b.trunc(value, _I8))


@op(f32, i64)
def read_f32(b: Any, address: Any) -> Any:
    """float32 at the address."""
    return _load(b, address, _F32)


@op(void, i64, f32)
def write_f32(b: Any, address: Any, value: Any) -> None:
    """Store a float32."""
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


@op(U8, i64, i64)
def load_u8_first(b: Any, address: Any, count: Any) -> Any:
    """The first `count` bytes (0..VB), zeros after them; memory past them is not touched."""
    return _masked_load(b, address, count, _I8, VB)


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


@op(void, i64, I32)
def store_i32(b: Any, address: Any, value: Any) -> None:
    """LANES int32."""
    _store(b, address, value)


@op(F32, i64)
def load_f16(b: Any, address: Any) -> Any:
    """LANES float16, widened."""
    return _extend_f16(b, _load(b, address, ir.VectorType(_F16, LANES)))


@op(void, i64, F32)
def store_f16(b: Any, address: Any, value: Any) -> None:
    """LANES float16, rounded to nearest even."""
    _store(b, address, _truncate_f16(b, value))


@op(F32, i64)
def load_i8_f32(b: Any, address: Any) -> Any:
    """LANES int8 as float32."""
    return b.sitofp(_load(b, address, ir.VectorType(_I8, LANES)), F32.ll)


@op(F32, i64)
def load_u8_f32(b: Any, address: Any) -> Any:
    """LANES uint8 as float32."""
    return b.uitofp(_load(b, address, ir.VectorType(_I8, LANES)), F32.ll)


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


def _repeat(count: int, element: ir.Type) -> Any:
    each = LANES // count

    @op(F32, i64)
    def repeat(b: Any, address: Any) -> Any:
        v = _load(b, address, ir.VectorType(element, count))
        v = v if element is _F32 else _extend_f16(b, v)
        return _shuffle(b, v, [i // each for i in range(LANES)])

    return repeat


# `count` consecutive values, each repeated over LANES / count lanes: scales over their groups.
repeat_f16 = {n: _repeat(n, _F16) for n in (1, 2, 4, 8) if n <= LANES}
repeat_f32 = {n: _repeat(n, _F32) for n in (1, 2, 4, 8) if n <= LANES}


@op(void, i64)
def prefetch(b: Any, address: Any) -> None:
    """Ask for the cache line of an address that will be read soon; harmless anywhere."""
    pointer = _pointer(b, address, _I8)
    flags = [ir.Constant(_I32, n) for n in (0, 3, 1)]
    _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, *flags)


# Constants and conversions


@op(F32, f32)
def splat_f32(b: Any, value: Any) -> Any:
    """The value in every lane."""
    return _splat(b, value, LANES)


@op(I32, i32)
def splat_i32(b: Any, value: Any) -> Any:
    """The value in every lane."""
    return _splat(b, value, LANES)


@op(U8, i64)
def splat_u8(b: Any, value: Any) -> Any:
    """The low 8 bits in every byte."""
    return _splat(b, b.trunc(value, _I8), VB)


@op(F32)
def zero_f32(b: Any) -> Any:
    """Zeros."""
    return _constant(_F32, LANES, 0.0)


@op(I32)
def zero_i32(b: Any) -> Any:
    """Zeros."""
    return _constant(_I32, LANES, 0)


@op(F32, I32)
def to_f32(b: Any, v: Any) -> Any:
    """int32 to float32."""
    return b.sitofp(v, F32.ll)


@op(I32, F32)
def round_i32(b: Any, v: Any) -> Any:
    """float32 to int32, to nearest even; |v| < 2^22."""
    # Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits; three cheap operations
    # everywhere, where fptosi would truncate and lrint is not a vector instruction on every target.
    magic = _constant(_F32, LANES, 12582912.0)
    bits = b.bitcast(b.fadd(v, magic), I32.ll)
    return b.sub(bits, _constant(_I32, LANES, 0x4B400000))


@op(I32, F32)
def f32_as_i32(b: Any, v: Any) -> Any:
    """The same bits."""
    return b.bitcast(v, I32.ll)


@op(F32, I32)
def i32_as_f32(b: Any, v: Any) -> Any:
    """The same bits."""
    return b.bitcast(v, F32.ll)


# Float arithmetic


@op(F32, F32, F32)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y)


@op(F32, F32, F32)
def sub(b: Any, x: Any, y: Any) -> Any:
    """x - y."""
    return b.fsub(x, y)


@op(F32, F32, F32)
def mul(b: Any, x: Any, y: Any) -> Any:
    """x * y."""
    return b.fmul(x, y)


@op(F32, F32, F32)
def div(b: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return b.fdiv(x, y)


@op(F32, F32, F32, F32)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once; twice on the portable target, which would call a function for it."""
    if NAME == "portable":
        return b.fadd(b.fmul(x, y), z)
    return _call(b, f"llvm.fma.v{LANES}f32", F32.ll, x, y, z)


@op(F32, F32, F32)
def maximum(b: Any, x: Any, y: Any) -> Any:
    """Larger of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@op(F32, F32, F32)
def minimum(b: Any, x: Any, y: Any) -> Any:
    """Smaller of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@op(F32, F32, F32, F32, F32)
def select_less(b: Any, x: Any, y: Any, then: Any, other: Any) -> Any:
    """`then` in lanes where x < y, `other` elsewhere."""
    return b.select(b.fcmp_ordered("<", x, y), then, other)


@op(F32, F32)
def absolute(b: Any, x: Any) -> Any:
    """|x|."""
    return _call(b, f"llvm.fabs.v{LANES}f32", F32.ll, x)


@op(f32, F32)
def sum_lanes(b: Any, v: Any) -> Any:
    """Sum of all lanes, as a tree."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        high = _shuffle(b, v, list(range(lanes, 2 * lanes)))
        v = b.fadd(_shuffle(b, v, list(range(lanes))), high)
    return b.extract_element(v, ir.Constant(_I32, 0))


@op(f32, F32)
def max_lanes(b: Any, v: Any) -> Any:
    """Largest of all lanes."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low, high = (
            _shuffle(b, v, list(range(lanes))),
            _shuffle(b, v, list(range(lanes, 2 * lanes))),
        )
        v = b.select(b.fcmp_ordered(">", low, high), low, high)
    return b.extract_element(v, ir.Constant(_I32, 0))


# Integer arithmetic


@op(I32, I32, I32)
def add_i32(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.add(x, y)


@op(I32, I32, i64)
def shift_left_i32(b: Any, x: Any, bits: Any) -> Any:
    """x << bits."""
    return b.shl(x, _splat(b, b.trunc(bits, _I32), LANES))


def _between(b: Any, v: Any, low: Any, high: Any) -> Any:
    above = b.icmp_signed(">=", v, _splat(b, low, LANES))
    return b.and_(above, b.icmp_signed("<=", v, _splat(b, high, LANES)))


@op(F32, I32, i32, i32, F32, F32)
def select_between(b: Any, v: Any, low: Any, high: Any, then: Any, other: Any) -> Any:
    """`then` in lanes where low <= v <= high, `other` elsewhere."""
    return b.select(_between(b, v, low, high), then, other)


@op(i64, I32, i32, i32)
def any_between(b: Any, v: Any, low: Any, high: Any) -> Any:
    """Not 0 where any lane has low <= v <= high."""
    mask = b.bitcast(_between(b, v, low, high), ir.IntType(LANES))
    return b.zext(mask, _I64)


@op(U8, U8, U8)
def and_u8(b: Any, x: Any, y: Any) -> Any:
    """x & y."""
    return b.and_(x, y)


@op(U8, U8, U8)
def or_u8(b: Any, x: Any, y: Any) -> Any:
    """x | y."""
    return b.or_(x, y)


@op(U8, U8, U8)
def xor_u8(b: Any, x: Any, y: Any) -> Any:
    """x ^ y."""
    return b.xor(x, y)


def _field(bits: int, position: int) -> Any:
    """Extract a bit field of every byte; shifts work on 16-bit lanes, the mask cleans up."""

    @op(U8, U8)
    def field(b: Any, v: Any) -> Any:
        if position:
            wide = ir.VectorType(_I16, VB // 2)
            v = b.lshr(b.bitcast(v, wide), _constant(_I16, VB // 2, position))
            v = b.bitcast(v, U8.ll)
        if bits + position == 8 and position == 0:
            return v
        return b.and_(v, _constant(_I8, VB, (1 << bits) - 1))

    return field


# FIELD[bits][i] takes the i-th code of `bits` bits, low first, out of every byte.
FIELD = {bits: tuple(_field(bits, p) for p in range(0, 8, bits)) for bits in (1, 2, 4)}


def _dot_pairs(b: Any, u: Any, s: Any) -> Any:
    """[LANES] int32 of products of 4 bytes each by plain LLVM arithmetic, u unsigned, s signed."""
    total = None
    for i in range(4):
        index = list(range(i, VB, 4))
        x = b.zext(_shuffle(b, u, index), I32.ll)
        y = b.sext(_shuffle(b, s, index), I32.ll)
        total = b.mul(x, y) if total is None else b.add(total, b.mul(x, y))
    return total


def _dot(small: bool) -> Any:
    """u8 x s8 dot products of 4 added to int32; `small` promises u < 128."""

    @op(I32, I32, U8, U8)
    def dot(b: Any, acc: Any, u: Any, s: Any) -> Any:
        if NAME == "avx512":
            return _call(b, "llvm.x86.avx512.vpdpbusd.512", I32.ll, acc, u, s)
        if NAME == "avxvnni":
            return _call(b, "llvm.x86.avx512.vpdpbusd.256", I32.ll, acc, u, s)
        if NAME == "avx2":
            half = ir.VectorType(_I16, 16)
            ones = _constant(_I16, 16, 1)

            def pairs(x: Any) -> Any:
                p = _call(b, "llvm.x86.avx2.pmadd.ub.sw", half, x, s)
                return _call(b, "llvm.x86.avx2.pmadd.wd", I32.ll, p, ones)

            if small:  # 2 * 127 * 128 < 2^15: the saturating pair sum cannot saturate
                return b.add(acc, pairs(u))
            low = b.and_(u, _constant(_I8, VB, 0x7F))
            high = b.and_(b.lshr(b.bitcast(u, half), _constant(_I16, 16, 7)), ones)
            top = b.lshr(b.bitcast(u, half), _constant(_I16, 16, 15))
            high = b.or_(high, b.shl(top, _constant(_I16, 16, 8)))
            high = pairs(b.bitcast(high, U8.ll))
            return b.add(b.add(acc, pairs(low)), b.shl(high, _constant(_I32, LANES, 7)))
        if NAME == "neon" and small:
            return _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", I32.ll, acc, u, s)
        if NAME == "neon":  # u = (u - 128) + 128, the first part signed
            signed = b.xor(u, _constant(_I8, VB, 0x80))
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            ones8 = _constant(_I8, VB, 1)
            total = _call(b, name, I32.ll, _constant(_I32, LANES, 0), ones8, s)
            acc = b.add(acc, b.shl(total, _constant(_I32, LANES, 7)))
            return _call(b, name, I32.ll, acc, signed, s)
        return b.add(acc, _dot_pairs(b, u, s))

    return dot


# acc [LANES] + sum over 4 consecutive bytes of u (unsigned) * s (signed).
dot_u8s8 = _dot(small=False)
# The same where every u < 128: one instruction less on some targets.
dot_u7s8 = _dot(small=True)


# Threads


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
        kind = ir.FunctionType(_I64, [])
        return b.asm(kind, "mrs $0, cntvct_el0", "=r", [], side_effect=True)
    return _call(b, "llvm.readcyclecounter", _I64)


@op(void, i64, i64, i64, i64, i64)
def call_kernel(b: Any, address: Any, instr: Any, ctx: Any, tid: Any, threads: Any) -> None:
    """Call a kernel by its address."""
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
    b.call(b.inttoptr(address, kind.as_pointer()), [instr, ctx, tid, threads])
