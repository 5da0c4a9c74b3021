"""Products of quantised weights with float32 activations; see `linear/float_tiles.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.linear.float_tiles import make_float_tiles
from edgetok.kernels_cpu.program.abi import kernel

_q2, _q3, _q4, _q8 = (make_float_tiles(bits) for bits in (2, 3, 4, 8))


@kernel
def matmul_q2_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """2-bit weights."""
    _q2(instr, ctx, tid, threads)


@kernel
def matmul_q3_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """3-bit weights."""
    _q3(instr, ctx, tid, threads)


@kernel
def matmul_q4_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """4-bit weights."""
    _q4(instr, ctx, tid, threads)


@kernel
def matmul_q8_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """8-bit weights."""
    _q8(instr, ctx, tid, threads)
