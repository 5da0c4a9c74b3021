"""Eviction from a cache of float16 keys and values: `scores.py`, `rest.py` and the others."""

from __future__ import annotations

from edgetok.kernels_cpu.eviction import content, rest, rotate, scores
from edgetok.kernels_cpu.program.abi import kernel

_scores = scores.make(16)
_content = content.make(16)
_join = rest.make(16)
_rotate = rotate.make(16)


@kernel
def retain_scores_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Score this thread's share of heads."""
    _scores(instr, ctx, tid, threads)


@kernel
def content_scores_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Score this thread's share of heads."""
    _content(instr, ctx, tid, threads)


@kernel
def join_rests_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Let what is evicted join the rests of this thread's share of heads."""
    _join(instr, ctx, tid, threads)


@kernel
def rotate_keys_16(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Rotate the keys of this thread's share of heads."""
    _rotate(instr, ctx, tid, threads)
