"""Compiles kernels for an instruction set that this machine lacks to code that it can run.

    echo "linear.q4 /somewhere/q4.o" | python emulated_isa.py avx512

Everything is as it would be there (vector widths, layouts, order of operations) except for the
dot products of bytes, which become plain arithmetic, and LLVM cuts vectors to what there is. Needs
fused multiply-add (AVX2).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from edgetok.kernels_cpu.program import build
from edgetok.kernels_cpu.simd import isa, target

NAME = sys.argv[1]
isa.ISAS[NAME] = replace(isa.ISAS[NAME], cpu=isa.ISAS["avx2"].cpu, features="")


def emulate() -> None:
    """Replace `vpdpbusd` where operations are emitted."""
    from llvmlite import ir

    from edgetok.kernels_cpu.simd import emit as simd_emit

    call = simd_emit._call

    def emulated(b, name, result, *args, **options):
        if "vpdpbusd" not in name:
            return call(b, name, result, *args, **options)
        total, u, s = args
        i16, i32 = (ir.VectorType(ir.IntType(n), simd_emit.LANES) for n in (16, 32))
        for k in range(4):
            lanes = list(range(k, simd_emit.VB, 4))
            x = b.zext(simd_emit._shuffle(b, u, lanes), i16)
            y = b.sext(simd_emit._shuffle(b, s, lanes), i16)
            total = b.add(total, b.sext(b.mul(x, y), i32))
        return total

    simd_emit._call = emulated


def main() -> None:
    """Compile the modules that the input names."""

    here = target.Target.here(isa.ISAS[NAME])
    target.select(here)
    emulate()
    for line in sys.stdin:
        module, _, path = line.rstrip("\n").partition(" ")
        build.write(build.build(here, module), Path(path))
        print(module, flush=True)


if __name__ == "__main__":
    main()
