"""Products with 2-bit weights; see `matmul_rows.py` and `matmul_tiles.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.abi import kernel
from edgetok.kernels_cpu.matmul_rows import make_rows

_rows = make_rows(2)


@kernel
def matmul_q2(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Int8 activations."""
    _rows(instr, ctx, tid, threads)
