"""Products of bytes on AVX2, which multiplies them to saturating pairs of int16; emitters.

    vpmaddubsw  int16 of u0 * s0 + u1 * s1, u unsigned and s signed       2 a cycle (Zen 3)
    vpmaddwd    int32 of sums of two int16, times one                     2 a cycle
    vpaddw      sums of int16                                             4 a cycle

Codes of up to 7 bits cannot saturate, and small ones leave room to add several pairs in 16 bits
before they are widened: 8 pairs of codes of up to 15, which is a block of 32 inputs.

Codes of 8 bits are taken as signed, code - 128, so that |code - 128| * (a with its sign) is at
most 2 * 128 * 127 = 32512 a pair: four instructions where splitting codes in 7 and 1 bits took
seven.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import NAME, U8, _call


def signed_codes(bits: int, table: bool = False) -> bool:
    """Whether codes are multiplied as code - 128, and levels of a table as they are."""
    return NAME == "avx2" and (bits == 8 or table)


def absolute_bytes(b: Any, v: Any) -> Any:
    """|v| of signed bytes, unsigned."""
    return _call(b, "llvm.abs.v32i8", U8.ll, v, ir.Constant(ir.IntType(1), 0))


def with_signs(b: Any, a: Any, signs: Any) -> Any:
    """Bytes of a, negated where those of `signs` are negative, 0 where they are 0."""
    return _call(b, "llvm.x86.avx2.psign.b", U8.ll, a, signs)


def in_order(b: Any, values: list[Any]) -> list[Any]:
    """The same vectors; what uses them comes after all that they are made of.

    Without it LLVM adds products in another order and computes one token after the other, while
    weights that it has loaded for all wait in memory: 40 cycles instead of 32 for 1024 products
    (Zen 3).
    """
    count = len(values)
    kind = ir.LiteralStructType([value.type for value in values])
    constraints = ",".join(["=x"] * count + [str(i) for i in range(count)])
    barrier = ir.InlineAsm(
        ir.FunctionType(kind, [value.type for value in values]), "", constraints, side_effect=False
    )
    packed = b.call(barrier, values)
    return [b.extract_value(packed, i) for i in range(count)]
