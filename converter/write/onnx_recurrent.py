"""Operations that keep states as ONNX nodes. A batch is not padded here.

Source: onnxruntime, docs/ContribOperators.md: LinearAttention, which has as many heads of queries
and keys as of values here. Tested with release 1.32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgetok.converter.write.onnx_decoder import DecoderWriter
from edgetok.converter.write.onnx_nodes import MICROSOFT
from edgetok.formats.layout import PAST_CONV, PAST_STATE, PRESENT_CONV, PRESENT_STATE
from edgetok.models.layers.gated_delta import NORM_EPS, CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.mamba2 import StateSpace, StateSteps
from edgetok.models.layers.short_conv import Convolution, ShortConv
from edgetok.models.ops import MatrixState


def short_conv(writer: DecoderWriter, op: ShortConv) -> None:
    """The convolution between its gates."""
    g, scope = writer.g, f"layers.{op.layer}"
    u = g.op("Mul", [writer.values[op.gate_in], writer.values[op.value]], f"{scope}.gate_in")
    y = _convolved(writer, op, u)
    writer.values[op.value] = g.op("Mul", [writer.values[op.gate_out], y], f"{scope}.gate_out")


def causal_conv(writer: DecoderWriter, op: CausalConv) -> None:
    """The convolution and its activation."""
    g, scope = writer.g, f"layers.{op.layer}.silu"
    y = _convolved(writer, op, writer.values[op.value], [op.bias] if op.bias else [])
    writer.values[op.value] = g.op("Mul", [y, g.op("Sigmoid", [y], scope)], scope)


def _convolved(writer: DecoderWriter, op: Convolution, u: str, bias: Sequence[str] = ()) -> str:
    """Convolve what is left of the tokens before and the new ones."""
    g, scope = writer.g, f"layers.{op.layer}.conv"
    u = g.op("Transpose", [u], scope, perm=[0, 2, 1])
    every = g.op("Concat", [PAST_CONV.format(op.layer), u], scope, axis=2)
    start, end = g.ints(1 - op.taps), g.ints(np.iinfo(np.int64).max)
    present = PRESENT_CONV.format(op.layer)
    g.op("Slice", [every, start, end, g.ints(2)], scope, outputs=[present])
    inputs = [every, f"{op.weight}.weight", *bias]
    y = g.op("Conv", inputs, scope, group=op.size, kernel_shape=[op.taps])
    return g.op("Transpose", [y], scope, perm=[0, 2, 1])


def delta_gates(writer: DecoderWriter, op: DeltaGates) -> None:
    """Both gates, with standard operators."""
    g, scope = writer.g, f"layers.{op.layer}.gates"
    writer.values[op.beta] = g.op("Sigmoid", [writer.values[op.beta]], scope)
    rate = g.op("Neg", [g.op("Exp", [op.log_rate], scope)], scope)
    step = g.op("Softplus", [g.op("Add", [writer.values[op.decay], op.bias], scope)], scope)
    writer.values[op.decay] = g.op("Mul", [step, rate], scope)


def delta_rule(writer: DecoderWriter, op: DeltaRule) -> None:
    """Norms of q and k, each for all heads that share it, and the recurrence."""
    g, scope = writer.g, f"layers.{op.layer}.delta"
    width, values = op.key_heads * op.key_dim, op.value_heads * op.value_dim
    sizes = g.ints(width, width, values)
    names = [f"{scope}/{which}" for which in "qkv"]
    g.op("Split", [writer.values[op.source], sizes], scope, outputs=names, axis=2)
    shared = op.value_heads // op.key_heads
    normed = []
    for name in names[:2]:
        x = g.op("Reshape", [name, g.ints(0, 0, op.key_heads, op.key_dim)], scope)
        total = g.op("ReduceSum", [g.op("Mul", [x, x], scope), g.ints(-1)], scope, keepdims=1)
        root = g.op("Sqrt", [g.op("Add", [total, g.float(NORM_EPS)], scope)], scope)
        x = g.op("Div", [x, root], scope)
        normed.append(_for_each_head(writer, x, shared, scope))
    gates = [writer.values[op.decay], writer.values[op.beta]]
    writer.values[op.result] = _attended(
        writer, op, scope, "gated_delta", [*normed, names[2]], gates
    )


def state_steps(writer: DecoderWriter, op: StateSteps) -> None:
    """The step sizes of Mamba2."""
    g, scope = writer.g, f"layers.{op.layer}.steps"
    x = g.op("Add", [writer.values[op.value], op.bias], scope)
    writer.values[op.value] = g.op("Softplus", [x], scope)


def state_space(writer: DecoderWriter, op: StateSpace) -> None:
    """The recurrence of Mamba2: queries are C, keys B, values x times the step."""
    g, scope = writer.g, f"layers.{op.layer}.space"
    group, heads = op.groups * op.state_dim, (0, 0, op.heads)
    sizes = g.ints(op.heads * op.head_dim, group, group)
    names = [f"{scope}/{which}" for which in "xbc"]
    g.op("Split", [writer.values[op.source], sizes], scope, outputs=names, axis=2)
    steps = writer.values[op.steps]
    rate = g.op("Neg", [g.op("Exp", [op.log_rate], scope)], scope)
    decay = g.op("Mul", [steps, rate], scope)
    x = g.op("Reshape", [names[0], g.ints(*heads, op.head_dim)], scope)
    step = g.op("Reshape", [steps, g.ints(*heads, 1)], scope)
    values = g.op("Reshape", [g.op("Mul", [x, step], scope), g.ints(0, 0, -1)], scope)
    shared = []
    for name in (names[2], names[1]):
        by_group = g.op("Reshape", [name, g.ints(0, 0, op.groups, op.state_dim)], scope)
        shared.append(_for_each_head(writer, by_group, op.heads // op.groups, scope))
    y = _attended(writer, op, scope, "gated", [*shared, values], [decay])
    skip = g.op("Reshape", [op.skip, g.ints(op.heads, 1)], scope)
    y = g.op("Reshape", [y, g.ints(*heads, op.head_dim)], scope)
    y = g.op("Add", [y, g.op("Mul", [x, skip], scope)], scope)
    writer.values[op.result] = g.op("Reshape", [y, g.ints(0, 0, -1)], scope)


def _for_each_head(writer: DecoderWriter, x: str, shared: int, scope: str) -> str:
    """[B, T, groups, dim] -> [B, T, groups * shared * dim]: each group for all its heads."""
    g = writer.g
    if shared > 1:
        x = g.op("Concat", [x] * shared, scope, axis=3)
    return g.op("Reshape", [x, g.ints(0, 0, -1)], scope)


def _attended(
    writer: DecoderWriter,
    op: MatrixState,
    scope: str,
    rule: str,
    values: Sequence[str],
    gates: Sequence[str],
) -> str:
    """Return the result of LinearAttention, from queries, keys and values of each head."""
    outputs = [f"{scope}/y", PRESENT_STATE.format(op.layer)]
    writer.g.op(
        "LinearAttention",
        [*values, PAST_STATE.format(op.layer), *gates],
        scope,
        domain=MICROSOFT,
        outputs=outputs,
        update_rule=rule,
        q_num_heads=op.state_shape[0],
        kv_num_heads=op.state_shape[0],
        scale=op.query_scale,
    )
    return outputs[0]
