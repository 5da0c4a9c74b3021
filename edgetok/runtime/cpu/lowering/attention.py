"""Operations of attention as CPU instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetok.kernels_cpu.attention import launch as launch_attention
from edgetok.kernels_cpu.attention.launch_queries import keep_queries
from edgetok.kernels_cpu.program.tables import Instruction
from edgetok.models import ops
from edgetok.runtime.cpu.lowering.target import Instructions, Near, Target

EVERY_TOKEN = 1 << 28  # of a window that reaches to both sides: no context is longer


def queries(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Queries kept for policies that look at them."""
    del near  # nothing is written that an operation reads
    op: ops.Queries = group[0]
    return [
        keep_queries(
            to.kernels,
            q=to.at(op.source),
            layer=op.own_layer * to.query_dim // op.head_dim,  # a layer's room is a multiple of D
            heads=op.heads,
            head_dim=op.head_dim,
        )
    ]


def store(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Keys and values into the cache, rotated first where slots have few bits."""
    op: ops.Store = group[0]
    made: Instructions = []
    if launch_attention.is_rotated(to.kv_bits):
        # Queries that meet these keys are rotated along with them, without a barrier of their own.
        if isinstance(near.after, ops.Attend):
            made.append(_rotate_queries(to, near.after, wait=False))
        keys = launch_attention.hadamard(
            to.kernels,
            x=to.at(op.keys),
            heads=op.heads,
            head_dim=op.head_dim,
            centre=to.constant(op.constants, "centre"),
            factor=to.constant(op.constants, "factor"),
            wait=False,
        )
        made += [keys, _hadamard(to, op.values, op.heads, op.head_dim, wait=False)]
    made.append(
        launch_attention.kv_append(
            to.kernels,
            kv_bits=to.kv_bits,
            k=to.at(op.keys),
            v=to.at(op.values),
            layer=_records(to, op.own_layer, op.heads),
            kv_heads=op.heads,
            head_dim=op.head_dim,
            wait=near.wait,
        )
    )
    return made


def attend(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Attention to the slots of a cache."""
    op: ops.Attend = group[0]
    made: Instructions = []
    rotated = launch_attention.is_rotated(to.kv_bits)
    if rotated and not isinstance(near.before, ops.Store):
        made.append(_rotate_queries(to, op, wait=True))
    made += launch_attention.attention(
        to.kernels,
        kv_bits=to.kv_bits,
        q=to.at(op.queries),
        out=to.at(op.result),
        layer=_records(to, op.stored_layer, op.kv_heads),
        heads=op.heads,
        kv_heads=op.kv_heads,
        head_dim=op.head_dim,
        window=-(op.window or EVERY_TOKEN) if op.both_sides else op.window,
        scale=op.scale,
        softcap=op.softcap,
        positions=to.buffers.positions,
        scratch=to.buffers.scratch,
        sinks=to.weight(op.sinks) if op.sinks else 0,
    )
    if rotated:
        made.append(_hadamard(to, op.result, op.heads, op.head_dim, wait=near.wait))
    return made


def _records(to: Target, layer: int, kv_heads: int) -> int:
    """Return the first record of a layer, counted in layers that all have `kv_heads` of them."""
    return layer * to.record_heads // kv_heads


def _rotate_queries(to: Target, op: ops.Attend, *, wait: bool) -> Instruction:
    """Queries as they meet keys of 4 to 8 bits."""
    return launch_attention.hadamard(
        to.kernels,
        x=to.at(op.queries),
        heads=op.heads,
        head_dim=op.head_dim,
        factor=to.constant(op.constants, "query_factor"),
        group=op.heads // op.kv_heads,
        wait=wait,
    )


def _hadamard(to: Target, value: str, heads: int, head_dim: int, *, wait: bool) -> Instruction:
    """Heads rotated as slots hold them, or back: mixed values are rotated as values are."""
    return launch_attention.hadamard(
        to.kernels, x=to.at(value), heads=heads, head_dim=head_dim, wait=wait
    )
