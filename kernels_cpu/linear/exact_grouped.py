"""Products of grouped weights with float32 activations; see `linear/float_tiles.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.linear.float_tiles import make_float_tiles
from edgetok.kernels_cpu.program.abi import kernel

_q3, _q4, _q5, _q6 = (make_float_tiles(bits, grouped=True) for bits in (3, 4, 5, 6))
_q4_table = make_float_tiles(4, grouped=True, table=True)


@kernel
def matmul_q3_supers_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """3-bit weights that have super-scales."""
    _q3(instr, ctx, tid, threads)


@kernel
def matmul_q4_offsets_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """4-bit weights that have offsets."""
    _q4(instr, ctx, tid, threads)


@kernel
def matmul_q4_table_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """4-bit weights that choose levels of a table."""
    _q4_table(instr, ctx, tid, threads)


@kernel
def matmul_q5_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """5-bit weights."""
    _q5(instr, ctx, tid, threads)


@kernel
def matmul_q6_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """6-bit weights that have super-scales."""
    _q6(instr, ctx, tid, threads)


@kernel
def matmul_q6_scales_float(instr: int, ctx: int, tid: int, threads: int) -> None:
    """6-bit weights that have none."""
    _q6(instr, ctx, tid, threads)
