"""Attention over a cache of float16 keys and values. See `attention.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.attention.attention import make
from edgetok.kernels_cpu.program.abi import kernel

_attention = make(16)


@kernel
def attention_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """softmax(softcap(scale * q k^T)) v."""
    _attention(instr, ctx, tid, threads)
