"""Attention over a cache of int6 keys and int4 values. See `attention.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.attention.attention import make
from edgetok.kernels_cpu.program.abi import kernel

_attention = make(5)


@kernel
def attention_5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """softmax(softcap(scale * q k^T)) v."""
    _attention(instr, ctx, tid, threads)
