"""The parts of the SIMD layer's operations: vector types, `op`, and emitters of LLVM's code.

See `simd/ops.py`. The vector width is chosen when this module is imported: `target_of_this_build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from edgetok.kernels_cpu.simd.compiler import KernelCompiler
from edgetok.kernels_cpu.simd.target import target_of_this_build

TARGET = target_of_this_build()
ARCH = TARGET.arch
ISA = TARGET.isa
NAME = ISA.extends or ISA.name  # of the set whose operations are used
MATRICES = ISA.matrices
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
    return njit(error_model="numpy", forceinline=True, pipeline_class=KernelCompiler)(function)


def outline(function: Callable[..., Any]) -> Any:
    """Compile a helper on its own, where a copy in each caller would cost too much code."""
    return njit(error_model="numpy", pipeline_class=KernelCompiler)(function)


i64 = types.int64
i32 = types.int32
f32 = types.float32
f64 = types.float64
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
