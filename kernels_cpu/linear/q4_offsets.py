"""Products with 4-bit weights that have offsets; see `linear/rows.py` and `linear/tiles.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.linear.rows import ROW_TOKENS, make_rows
from edgetok.kernels_cpu.linear.tiles import make_tiles
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd.memory import read_i64

_rows, _tiles = make_rows(4, grouped=32), make_tiles(4, grouped=32)


@kernel
def matmul_q4_offsets(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Int8 activations."""
    if read_i64(ctx + 8 * CTX_TOKENS) <= ROW_TOKENS:
        _rows(instr, ctx, tid, threads)
    else:
        _tiles(instr, ctx, tid, threads)
