"""SplitMix64: the random numbers of sampling, the same in Python and C (docs/random.md)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.simd.emit import _F64, _I64, f64, i64, op

_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


@op(f64, i64, i64)
def random_share(b: Any, seed: Any, index: Any) -> Any:
    """Number `index`, from 0, of the stream of a seed; in [0, 1)."""

    def mixed(z: Any, shift: int, factor: int) -> Any:
        return b.mul(b.xor(z, b.lshr(z, ir.Constant(_I64, shift))), ir.Constant(_I64, factor))

    steps = b.mul(b.add(index, ir.Constant(_I64, 1)), ir.Constant(_I64, _STEP))
    z = mixed(mixed(b.add(seed, steps), 30, _FIRST), 27, _SECOND)
    z = b.xor(z, b.lshr(z, ir.Constant(_I64, 31)))
    # 53 bits are exact in a float64; signed conversion is one instruction everywhere.
    whole = b.sitofp(b.lshr(z, ir.Constant(_I64, 11)), _F64)
    return b.fmul(whole, ir.Constant(_F64, 2.0**-53))
