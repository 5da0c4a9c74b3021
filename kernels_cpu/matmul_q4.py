"""Products with 4-bit weights; see `matmul_rows.py` and `matmul_tiles.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.abi import kernel
from edgetok.kernels_cpu.matmul_rows import make_rows

_rows = make_rows(4)


@kernel
def matmul_q4(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Int8 activations."""
    _rows(instr, ctx, tid, threads)
