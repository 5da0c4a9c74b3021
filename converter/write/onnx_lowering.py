"""Operations of a decoder as ONNX nodes: one entry for each kind.

Another kind is lowered by adding to `LOWERINGS`; what the operators of opset 21 and `com.microsoft`
do not compute is written with those that there are.

Source: onnxruntime, docs/ContribOperators.md: MatMulNBits, GatherBlockQuantized, RotaryEmbedding,
GroupQueryAttention. Its `local_window_size` counts the token itself, as `Attention.window` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgetok.converter.write import (
    onnx_both_sides,
    onnx_experts,
    onnx_recurrent,
    onnx_streams,
)
from edgetok.converter.write.onnx_decoder import DecoderWriter
from edgetok.converter.write.onnx_nodes import MICROSOFT
from edgetok.errors import UnsupportedError
from edgetok.formats.layout import (
    present_name,
)
from edgetok.models import ops
from edgetok.models.layers.altup import AddEach, CorrectStreams, MatchSize, MixStreams
from edgetok.models.layers.experts import ExpertLinear, MixExperts, Route
from edgetok.models.layers.gated_delta import CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.mamba2 import StateSpace, StateSteps
from edgetok.models.layers.short_conv import ShortConv


def lower(writer: DecoderWriter, operations: Iterable[ops.Op]) -> None:
    """Append the nodes of some operations.

    Raises:
        UnsupportedError: one has no entry in `LOWERINGS`.
    """
    for op in operations:
        if type(op) not in LOWERINGS:
            raise UnsupportedError(
                f"the ONNX graph has no {type(op).__name__}; expected one of "
                f"{', '.join(known.__name__ for known in LOWERINGS)}"
            )
        LOWERINGS[type(op)](writer, op)


def _embed(writer: DecoderWriter, op: ops.Embed) -> None:
    writer.values[op.result] = writer.scaled(writer.embed(op.weight, op.size), op.scale, op.weight)


def _norm(writer: DecoderWriter, op: ops.Norm) -> None:
    g, x, weighted = writer.g, writer.values[op.source], bool(op.weight)
    name = op.weight or f"{_scope(op)}.{op.result}_norm"
    if op.centred:
        x = g.op("Sub", [x, g.op("ReduceMean", [x, g.ints(-1)], name, keepdims=1)], name)
    if op.heads is None:
        writer.values[op.result] = writer.norm(x, name, op.eps, weighted=weighted)
        return
    x = g.op("Reshape", [x, g.ints(0, 0, op.heads, op.size)], name)
    x = writer.norm(x, name, op.eps, weighted=weighted)
    writer.values[op.result] = g.op("Reshape", [x, g.ints(0, 0, -1)], name)


def _linear(writer: DecoderWriter, op: ops.Linear) -> None:
    y, scope = writer.linear(writer.values[op.source], op.weight), _scope(op)
    if op.layer is None:
        scope = op.weight
    y = writer.scaled(y, op.scale, scope)
    if op.add:
        y = writer.g.op("Add", [writer.values[op.result], y], scope)
    writer.values[op.result] = y


def _queries(writer: DecoderWriter, op: ops.Queries) -> None:
    """No cache of this graph judges tokens."""


def _rope(writer: DecoderWriter, op: ops.Rope) -> None:
    cos, sin = writer.rotation(op.rope)
    rotary_dim = writer.spec.ropes[op.rope].rotary_dim
    writer.values[op.value] = writer.g.op(
        "RotaryEmbedding",
        [writer.values[op.value], writer.rotation_rows, cos, sin],
        _scope(op),
        domain=MICROSOFT,
        num_heads=op.heads,
        rotary_embedding_dim=rotary_dim if rotary_dim != op.head_dim else 0,
    )


def _position_scale(writer: DecoderWriter, op: ops.PositionScale) -> None:
    x = [writer.values[op.value], writer.growth(op.growth, op.every)]
    writer.values[op.value] = writer.g.op("Mul", x, f"{_scope(op)}.growth")


def _store(writer: DecoderWriter, op: ops.Store) -> None:
    """Remember what GroupQueryAttention is to store, which does both."""
    writer.stored[op.own_layer] = writer.values[op.keys], writer.values[op.values]


def _attend(writer: DecoderWriter, op: ops.Attend) -> None:
    i, scope = op.own_layer, _scope(op)
    if op.both_sides:
        onnx_both_sides.attend(writer, op, scope)
        return
    q = writer.padded(writer.values[op.queries], scope, op.heads, op.head_dim)
    k, v = (
        writer.padded(stored, scope, op.kv_heads, op.head_dim)
        for stored in writer.stored[op.stored_layer]
    )
    kinds = ("key", "value")
    past = [f"past_key_values.{op.stored_layer}.{kind}" for kind in kinds]
    present = [present_name(i, kind, op.shares) for kind in kinds]
    attributes: dict[str, Any] = {"num_heads": op.heads, "kv_num_heads": op.kv_heads}
    attributes |= {"scale": float(op.scale), "do_rotary": 0}
    if op.window:
        attributes["local_window_size"] = op.window
    if op.softcap:
        attributes["softcap"] = float(op.softcap)
    # Those between are rotations, positions and a bias, which this graph computes or leaves out.
    sinks = ["", "", "", "", op.sinks] if op.sinks else []
    attended = writer.g.op(
        "GroupQueryAttention",
        [q, k, v, *past, writer.last_positions, writer.total_tokens, *sinks],
        scope,
        domain=MICROSOFT,
        outputs=[f"{scope}/attended", *present],
        **attributes,
    )
    writer.values[op.result] = writer.unpadded(attended, scope, op.heads, op.head_dim)


def _activation_mul(writer: DecoderWriter, op: ops.ActivationMul) -> None:
    scope, gate = _scope(op), writer.values[op.gate]
    if op.kind == "clamped_swiglu":
        writer.values[op.result] = _clamped_swiglu(writer, gate, writer.values[op.up], scope)
        return
    gate = _activated(writer, gate, op.kind, scope)
    writer.values[op.result] = writer.g.op("Mul", [gate, writer.values[op.up]], f"{scope}.gated")


def _activated(writer: DecoderWriter, x: str, kind: str, scope: str) -> str:
    g = writer.g
    if kind == "silu":
        return g.op("Mul", [x, g.op("Sigmoid", [x], scope)], f"{scope}.silu")
    if kind == "sigmoid":
        return g.op("Sigmoid", [x], f"{scope}.sigmoid")
    if kind == "relu2":
        x = g.op("Clip", [x, g.float(0.0)], f"{scope}.positive")
        return g.op("Mul", [x, x], f"{scope}.squared")
    approximate = "tanh" if kind == "gelu_tanh" else "none"
    return g.op("Gelu", [x], scope, approximate=approximate)


def _activate(writer: DecoderWriter, op: ops.Activate) -> None:
    writer.values[op.value] = _activated(writer, writer.values[op.value], op.kind, _scope(op))


def _clamped_swiglu(writer: DecoderWriter, gate: str, up: str, scope: str) -> str:
    g = writer.g
    limit = g.float(ops.SWIGLU_LIMIT)
    gate = g.op("Clip", [gate, "", limit], scope)
    up = g.op("Clip", [up, g.float(-ops.SWIGLU_LIMIT), limit], scope)
    share = g.op("Sigmoid", [g.op("Mul", [gate, g.float(ops.SWIGLU_ALPHA)], scope)], scope)
    gate = g.op("Mul", [gate, share], f"{scope}.swish")
    return g.op("Mul", [gate, g.op("Add", [up, g.float(1.0)], scope)], f"{scope}.gated")


def _add_scaled(writer: DecoderWriter, op: ops.AddScaled) -> None:
    y = writer.scaled(writer.values[op.source], op.scale, _scope(op))
    writer.values[op.value] = writer.g.op("Add", [writer.values[op.value], y], _scope(op))


def _columns(writer: DecoderWriter, op: ops.Columns) -> None:
    g, x = writer.g, writer.values[op.source]
    ends = [g.ints(op.first), g.ints(op.first + op.size), g.ints(2)]
    writer.values[op.result] = g.op("Slice", [x, *ends], f"{_scope(op)}.columns")


def _scale_by(writer: DecoderWriter, op: ops.ScaleBy) -> None:
    x = [writer.values[op.value], f"{op.weight}.weight"]
    writer.values[op.value] = writer.g.op("Mul", x, op.weight)


def _scale_columns(writer: DecoderWriter, op: ops.ScaleColumns) -> None:
    g, x, scope = writer.g, writer.values[op.value], f"{_scope(op)}.columns"
    x = g.op("Reshape", [x, g.ints(0, 0, op.heads, op.size)], scope)
    x = g.op("Mul", [x, f"{op.weight}.weight"], scope)
    writer.values[op.value] = g.op("Reshape", [x, g.ints(0, 0, -1)], scope)


def _sigmoid_scale(writer: DecoderWriter, op: ops.SigmoidScale) -> None:
    g, scope = writer.g, f"{_scope(op)}.sigmoid"
    share = g.op("Sigmoid", [writer.values[op.gate]], scope)
    x = writer.values[op.value]
    if op.heads == 1:
        writer.values[op.value] = g.op("Mul", [x, share], scope)
        return
    x = g.op("Reshape", [x, g.ints(0, 0, op.heads, op.size)], scope)
    x = g.op("Mul", [x, g.op("Unsqueeze", [share, g.ints(-1)], scope)], scope)
    writer.values[op.value] = g.op("Reshape", [x, g.ints(0, 0, -1)], scope)


def _softcap(writer: DecoderWriter, op: ops.SoftCap) -> None:
    g, limit = writer.g, writer.g.float(op.limit)
    y = g.op("Tanh", [g.op("Div", [writer.values[op.value], limit], "softcap")], "softcap")
    writer.values[op.value] = g.op("Mul", [y, limit], "softcap")


def _scope(op: ops.Op) -> str:
    return "decoder" if op.layer is None else f"layers.{op.layer}"


LOWERINGS: dict[type[ops.Op], Callable[[DecoderWriter, Any], None]] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _linear,
    ops.Queries: _queries,
    ops.Rope: _rope,
    ops.PositionScale: _position_scale,
    ops.Store: _store,
    ops.Attend: _attend,
    ops.ActivationMul: _activation_mul,
    ops.Activate: _activate,
    ops.AddScaled: _add_scaled,
    ops.Columns: _columns,
    ops.ScaleBy: _scale_by,
    ops.ScaleColumns: _scale_columns,
    ops.SigmoidScale: _sigmoid_scale,
    ops.SoftCap: _softcap,
    ops.Sparsify: onnx_streams.sparsify,
    MixStreams: onnx_streams.mix_streams,
    CorrectStreams: onnx_streams.correct_streams,
    MatchSize: onnx_streams.match_size,
    AddEach: onnx_streams.add_each,
    ShortConv: onnx_recurrent.short_conv,
    CausalConv: onnx_recurrent.causal_conv,
    DeltaGates: onnx_recurrent.delta_gates,
    DeltaRule: onnx_recurrent.delta_rule,
    StateSteps: onnx_recurrent.state_steps,
    StateSpace: onnx_recurrent.state_space,
    Route: onnx_experts.route,
    ExpertLinear: onnx_experts.expert_linear,
    MixExperts: onnx_experts.mix_experts,
}
"""Appends the nodes of one operation of a kind."""
