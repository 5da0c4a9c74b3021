"""Eviction from 6-bit keys and 4-bit values: `scores.py`, `rest.py` and the others."""

from __future__ import annotations

from edgetok.kernels_cpu.eviction import content, rest, rotate, scores
from edgetok.kernels_cpu.program.abi import kernel

_scores = scores.make(5)
_content = content.make(5)
_join = rest.make(5)
_rotate = rotate.make(5)


@kernel
def retain_scores_5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Score this thread's share of heads."""
    _scores(instr, ctx, tid, threads)


@kernel
def content_scores_5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Score this thread's share of heads."""
    _content(instr, ctx, tid, threads)


@kernel
def join_rests_5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Let what is evicted join the rests of this thread's share of heads."""
    _join(instr, ctx, tid, threads)


@kernel
def rotate_keys_5(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Rotate the keys of this thread's share of heads."""
    _rotate(instr, ctx, tid, threads)
