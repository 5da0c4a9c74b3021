"""Operations of a decoder as CPU instructions: one entry for each kind.

Another kind is lowered by adding to `LOWERINGS`. An instruction is followed by a barrier unless the
next operation shares its work out alike, so that each thread reads only what it wrote itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetok.errors import UnsupportedError
from edgetok.kernels_cpu.elementwise import launch as launch_elementwise
from edgetok.kernels_cpu.elementwise import launch_columns
from edgetok.kernels_cpu.elementwise.launch_layer_norm import layer_norm
from edgetok.kernels_cpu.elementwise.launch_position_scale import position_scale
from edgetok.kernels_cpu.elementwise.launch_ungated import ungated
from edgetok.kernels_cpu.elementwise.launch_unit_norm import unit_norm
from edgetok.kernels_cpu.linear.launch import embed_instruction
from edgetok.models import ops
from edgetok.models.layers.altup import AddEach, CorrectStreams, MatchSize, MixStreams
from edgetok.models.layers.experts import ExpertLinear, MixExperts, Route
from edgetok.models.layers.gated_delta import CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.mamba2 import StateSpace, StateSteps
from edgetok.models.layers.short_conv import ShortConv
from edgetok.models.operations import grouped
from edgetok.runtime.cpu.lowering import attention, experts, recurrent, streams
from edgetok.runtime.cpu.lowering.target import Instructions, Lowering, Near, Target


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


_BY_HEAD = (ops.PositionScale, ops.Queries, ops.Rope, ops.Store)


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
    if op.centred:
        return [
            layer_norm(
                to.kernels,
                x=to.at(op.source),
                out=to.at(op.result),
                weight=to.weight(f"{op.weight}.weight"),
                size=op.size,
                eps=op.eps,
                wait=near.wait,
            )
        ]
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


def _position_scale(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.PositionScale = group[0]
    return [
        position_scale(
            to.kernels,
            x=to.at(op.value),
            positions=to.buffers.positions,
            heads=op.heads,
            head_dim=op.head_dim,
            growth=op.growth,
            every=op.every,
            wait=near.wait,
        )
    ]


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


def _activate(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.Activate = group[0]
    return [ungated(to.kernels, kind=op.kind, x=to.at(op.value), size=op.size, wait=near.wait)]


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


def _scale_columns(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.ScaleColumns = group[0]
    return [
        launch_columns.scale_columns(
            to.kernels,
            x=to.at(op.value),
            weight=to.weight(f"{op.weight}.weight"),
            size=op.size,
            heads=op.heads,
            wait=near.wait,
        )
    ]


def _sigmoid_scale(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    op: ops.SigmoidScale = group[0]
    return [
        launch_columns.sigmoid_scale(
            to.kernels,
            gate=to.at(op.gate),
            value=to.at(op.value),
            size=op.size,
            heads=op.heads,
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


LOWERINGS: dict[type[ops.Op], Lowering] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _linears,
    ops.Queries: attention.queries,
    ops.Rope: _rope,
    ops.PositionScale: _position_scale,
    ops.Store: attention.store,
    ops.Attend: attention.attend,
    ops.ActivationMul: _activation_mul,
    ops.Activate: _activate,
    ops.AddScaled: _add_scaled,
    ops.Columns: _columns,
    ops.ScaleBy: _scale_by,
    ops.ScaleColumns: _scale_columns,
    ops.SigmoidScale: _sigmoid_scale,
    ops.SoftCap: _softcap,
    ops.Sparsify: streams.sparsify,
    MixStreams: streams.mix_streams,
    CorrectStreams: streams.correct_streams,
    MatchSize: streams.match_size,
    AddEach: streams.add_each,
    ShortConv: recurrent.short_conv,
    CausalConv: recurrent.causal_conv,
    DeltaGates: recurrent.delta_gates,
    DeltaRule: recurrent.delta_rule,
    StateSteps: recurrent.state_steps,
    StateSpace: recurrent.state_space,
    Route: experts.route,
    ExpertLinear: experts.products,
    MixExperts: experts.mix,
}
"""From the target, operations of a kind (`grouped`) and what stands around them to instructions."""
