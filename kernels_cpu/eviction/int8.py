"""Eviction from a cache of int8 keys and values. See `scores.py`, `content.py` and `rotate.py`."""

from __future__ import annotations

from edgetok.kernels_cpu.eviction import content, rotate, scores
from edgetok.kernels_cpu.program.abi import kernel

_scores = scores.make(8)
_content = content.make(8)
_rotate = rotate.make(8)


@kernel
def retain_scores_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Score this thread's share of heads."""
    _scores(instr, ctx, tid, threads)


@kernel
def content_scores_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Score this thread's share of heads."""
    _content(instr, ctx, tid, threads)


@kernel
def rotate_keys_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Rotate the keys of this thread's share of heads."""
    _rotate(instr, ctx, tid, threads)
