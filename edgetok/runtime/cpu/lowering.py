"""Operations of a decoder as CPU instructions: one entry for each kind.

Another kind is lowered by adding to `LOWERINGS`. An instruction is followed by a barrier unless the
next operation shares its work out alike, so that each thread reads only what it wrote itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetok.errors import UnsupportedError
from edgetok.kernels_cpu.attention import launch as launch_attention
from edgetok.kernels_cpu.attention.launch_queries import keep_queries
from edgetok.kernels_cpu.elementwise import launch as launch_elementwise
from edgetok.kernels_cpu.elementwise import launch_columns
from edgetok.kernels_cpu.elementwise.launch_unit_norm import unit_norm
from edgetok.kernels_cpu.linear.launch import embed_instruction
from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, Table
from edgetok.models import ops
from edgetok.models.layers.experts import ExpertLinear, MixExperts, Route, SigmoidScale
from edgetok.models.layers.gated_delta import CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.mamba2 import StateSpace, StateSteps
from edgetok.models.layers.short_conv import ShortConv
from edgetok.models.operations import grouped
from edgetok.runtime.cpu import expert_lowering, recurrent_lowering
from edgetok.runtime.cpu.linears import Linears

Instructions = list[Instruction | Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """The buffers that instructions point to, beside weights.

    Attributes:
        values: of each value, by name.
        tokens: int32, one a row.
        positions: address of int32 [rows].
        ropes: for each rope the addresses of cos and sin.
        scratch: address of `launch_attention.scratch_bytes` for each thread.
    """

    values: Mapping[str, Floats]
    tokens: Span
    positions: int
    ropes: Sequence[tuple[int, int]]
    scratch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of lowering.

    Attributes:
        kernels: gives the addresses of kernels.
        linears: makes the products.
        weight: the address of a tensor, by name with suffix.
        buffers: of the values.
        rotary_dims: of each rope.
        head_dim: of attention, the most of any layer.
        record_heads: KV heads for which each layer has records in a cache (`most_kv_heads`).
        query_dim: dims of each head for which a layer has room in a ring of queries.
        kv_bits: of the caches.
        tied: whether the embedding is the head's matrix.
        constants: names of the cache's constants.
    """

    kernels: Addresses
    linears: Linears
    weight: Callable[[str], int]
    buffers: Buffers
    rotary_dims: Sequence[int]
    head_dim: int
    record_heads: int
    query_dim: int
    kv_bits: int
    tied: bool
    constants: Collection[str] = ()

    def constant(self, name: str, which: str) -> int:
        """The address of a constant of the cache; 0 for none."""
        full = f"{name}.{which}"
        return self.weight(full) if full in self.constants else 0

    def matrix(self, value: str, columns: int) -> Floats:
        """A value, of as many columns as it has now: layers may differ."""
        place = self.buffers.values[value]
        return Floats(place.address, place.tokens_max, columns, columns)

    def at(self, value: str) -> int:
        """The address of a value's first row."""
        return self.buffers.values[value].address


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """The operations around those that are lowered.

    Attributes:
        before: the operation before them.
        after: the operation behind them.
        wait: whether all threads wait before `after` begins.
    """

    before: ops.Op | None
    after: ops.Op | None
    wait: bool


def lower(operations: Sequence[ops.Op], target: Target) -> tuple[Instructions, int]:
    """The instructions of some operations.

    Returns:
        Instructions, and how many of them there are up to the last one that stores for later runs.

    Raises:
        UnsupportedError: an operation has no entry in `LOWERINGS`.
    """
    made: Instructions = []
    stored = 0
    before: ops.Op | None = None
    groups = grouped(operations)
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        kind = type(group[0])
        if kind not in LOWERINGS:
            raise UnsupportedError(
                f"the cpu backend does not compute {kind.__name__}; expected one of "
                f"{', '.join(known.__name__ for known in LOWERINGS)}"
            )
        after = None if following is None else following[0]
        wait = after is None or not _shared_alike(group[-1], after)
        made += LOWERINGS[kind](target, group, Near(before=before, after=after, wait=wait))
        before = group[-1]
        if group[-1].STORES:
            stored = len(made)
    return made, stored


_BY_HEAD = (ops.Queries, ops.Rope, ops.Store)


def _shared_alike(op: ops.Op, following: ops.Op) -> bool:
    """Return whether a thread computes the same rows or heads of `following` as of `op`."""

    def by_head(op: ops.Op) -> bool:
        return isinstance(op, _BY_HEAD) or (isinstance(op, ops.Norm) and op.heads is not None)

    if isinstance(op, ops.AddScaled):
        return isinstance(following, ops.ScaleBy)
    if isinstance(op, ops.Norm) and op.heads is None:
        whole_rows = isinstance(following, ops.Norm) and following.heads is None
        return whole_rows or isinstance(following, ops.AddScaled)
    return by_head(op) and by_head(following)


def _embed(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.Embed = group[0]
    return [
        embed_instruction(
            to.kernels,
            table=to.linears.weight(
                "lm_head" if to.tied and op.weight == "embed_tokens" else op.weight
            ),
            tokens=to.buffers.tokens,
            x=to.buffers.values[op.result],
            scale=op.scale,
            barrier=near.wait,
        )
    ]


def _norm(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.Norm = group[0]
    if not op.weight:
        return [
            unit_norm(
                to.kernels,
                x=to.at(op.source),
                out=to.at(op.result),
                size=op.size,
                units=op.heads or 1,
                eps=op.eps,
                wait=near.wait,
            )
        ]
    return [
        launch_elementwise.rms_norm(
            to.kernels,
            x=to.at(op.source),
            out=to.at(op.result),
            weight=to.weight(f"{op.weight}.weight"),
            size=op.size,
            units=op.heads or 1,
            eps=op.eps,
            wait=near.wait,
        )
    ]


def _linears(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Layers that share their input: it is quantised once for each format."""
    del near  # products share work out in their own way
    return to.linears.products(
        to.matrix(group[0].source, group[0].inputs),
        {op.weight: to.matrix(op.result, op.outputs) for op in group},
        add={op.weight: op.add for op in group},
        scale={op.weight: op.scale for op in group},
    )


def _queries(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    del near  # nothing is written that an operation reads
    op: ops.Queries = group[0]
    return [
        keep_queries(
            to.kernels,
            q=to.at(op.source),
            layer=_layer(op) * to.query_dim // op.head_dim,  # a layer's room is a multiple of D
            heads=op.heads,
            head_dim=op.head_dim,
        )
    ]


def _rope(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.Rope = group[0]
    cos, sin = to.buffers.ropes[op.rope]
    return [
        launch_elementwise.rope(
            to.kernels,
            x=to.at(op.value),
            cos=cos,
            sin=sin,
            heads=op.heads,
            head_dim=op.head_dim,
            rotary_dim=to.rotary_dims[op.rope],
            wait=near.wait,
        )
    ]


def _store(to: Target, group: Sequence[Any], near: Near) -> Instructions:
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
            layer=_records(to, _layer(op), op.heads),
            kv_heads=op.heads,
            head_dim=op.head_dim,
            wait=near.wait,
        )
    )
    return made


def _attend(to: Target, group: Sequence[Any], near: Near) -> Instructions:
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
        layer=_records(to, _layer(op) if op.shares is None else op.shares, op.kv_heads),
        heads=op.heads,
        kv_heads=op.kv_heads,
        head_dim=op.head_dim,
        window=op.window,
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
    """Where a layer's records begin, counted in layers that all have `kv_heads` of them."""
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


def _activation_mul(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.ActivationMul = group[0]
    return [
        launch_elementwise.activation_mul(
            to.kernels,
            kind=op.kind,
            gate=to.at(op.gate),
            up=to.at(op.up),
            out=to.at(op.result),
            size=op.size,
            wait=near.wait,
        )
    ]


def _add_scaled(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.AddScaled = group[0]
    return [
        launch_elementwise.add_scaled(
            to.kernels,
            x=to.at(op.value),
            y=to.at(op.source),
            size=op.size,
            scale=op.scale,
            wait=near.wait,
        )
    ]


def _columns(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.Columns = group[0]
    return [
        launch_columns.columns(
            to.kernels,
            x=to.at(op.source),
            out=to.at(op.result),
            first=op.first,
            size=op.size,
            width=op.width,
            wait=near.wait,
        )
    ]


def _scale_by(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.ScaleBy = group[0]
    return [
        launch_columns.scale_by(
            to.kernels,
            x=to.at(op.value),
            weight=to.weight(f"{op.weight}.weight"),
            size=op.size,
            wait=near.wait,
        )
    ]


def _softcap(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.SoftCap = group[0]
    return [
        launch_elementwise.softcap(
            to.kernels,
            x=to.at(op.value),
            size=op.size,
            scale=1.0,
            limit=op.limit,
            wait=near.wait,
        )
    ]


def _layer(op: ops.Op) -> int:
    if op.layer is None:
        raise UnsupportedError(f"{type(op).__name__} outside of a layer: caches are a layer's")
    return op.layer


Lowering = Callable[[Target, Sequence[Any], Near], Instructions]
LOWERINGS: dict[type[ops.Op], Lowering] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _linears,
    ops.Queries: _queries,
    ops.Rope: _rope,
    ops.Store: _store,
    ops.Attend: _attend,
    ops.ActivationMul: _activation_mul,
    ops.AddScaled: _add_scaled,
    ops.Columns: _columns,
    ops.ScaleBy: _scale_by,
    ops.SoftCap: _softcap,
    ShortConv: recurrent_lowering.short_conv,
    CausalConv: recurrent_lowering.causal_conv,
    DeltaGates: recurrent_lowering.delta_gates,
    DeltaRule: recurrent_lowering.delta_rule,
    StateSteps: recurrent_lowering.state_steps,
    StateSpace: recurrent_lowering.state_space,
    Route: expert_lowering.route,
    ExpertLinear: expert_lowering.products,
    MixExperts: expert_lowering.mix,
    SigmoidScale: expert_lowering.sigmoid_scale,
}
"""From the target, operations of a kind (`grouped`) and what stands around them to instructions."""
