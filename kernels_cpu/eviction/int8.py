"""Eviction from a cache of int8 keys and values: `scores.py`, `rest.py` and the others."""

from __future__ import annotations

from edgetok.kernels_cpu.eviction import content, rest, rotate, scores
from edgetok.kernels_cpu.program.abi import kernel

_scores = scores.make(8)
_content = content.make(8)
_join = rest.make(8)
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
def join_rests_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Let what is evicted join the rests of this thread's share of heads."""
    _join(instr, ctx, tid, threads)


@kernel
def rotate_keys_8(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Rotate the keys of this thread's share of heads."""
    _rotate(instr, ctx, tid, threads)
