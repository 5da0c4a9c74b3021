"""Operations that keep states as ONNX nodes. A batch is not padded here.

Source: onnxruntime, docs/ContribOperators.md: LinearAttention, which has as many heads of queries
and keys as of values here. Tested with release 1.32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgetok.converter.write.onnx_nodes import MICROSOFT
from edgetok.formats.layout import PAST_CONV, PAST_STATE, PRESENT_CONV, PRESENT_STATE
from edgetok.models.layers.gated_delta import NORM_EPS, CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.short_conv import Convolution, ShortConv

if TYPE_CHECKING:
    from edgetok.converter.write.onnx_lowering import DecoderWriter


def short_conv(writer: DecoderWriter, op: ShortConv) -> None:
    """The convolution between its gates."""
    g, scope = writer.g, f"layers.{op.layer}"
    u = g.op("Mul", [writer.values[op.gate_in], writer.values[op.value]], f"{scope}.gate_in")
    y = _convolved(writer, op, u)
    writer.values[op.value] = g.op("Mul", [writer.values[op.gate_out], y], f"{scope}.gate_out")


def causal_conv(writer: DecoderWriter, op: CausalConv) -> None:
    """The convolution and its activation."""
    g, scope = writer.g, f"layers.{op.layer}.silu"
    y = _convolved(writer, op, writer.values[op.value])
    writer.values[op.value] = g.op("Mul", [y, g.op("Sigmoid", [y], scope)], scope)


def _convolved(writer: DecoderWriter, op: Convolution, u: str) -> str:
    """Convolve what is left of the tokens before and the new ones."""
    g, scope = writer.g, f"layers.{op.layer}.conv"
    u = g.op("Transpose", [u], scope, perm=[0, 2, 1])
    every = g.op("Concat", [PAST_CONV.format(op.layer), u], scope, axis=2)
    start, end = g.ints(1 - op.taps), g.ints(np.iinfo(np.int64).max)
    present = PRESENT_CONV.format(op.layer)
    g.op("Slice", [every, start, end, g.ints(2)], scope, outputs=[present])
    weight = f"{op.weight}.weight"
    y = g.op("Conv", [every, weight], scope, group=op.size, kernel_shape=[op.taps])
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
        if shared > 1:
            x = g.op("Concat", [x] * shared, scope, axis=3)
        normed.append(g.op("Reshape", [x, g.ints(0, 0, -1)], scope))
    inputs = [*normed, names[2], PAST_STATE.format(op.layer)]
    outputs = [f"{scope}/y", PRESENT_STATE.format(op.layer)]
    g.op(
        "LinearAttention",
        [*inputs, writer.values[op.decay], writer.values[op.beta]],
        scope,
        domain=MICROSOFT,
        outputs=outputs,
        update_rule="gated_delta",
        q_num_heads=op.value_heads,
        kv_num_heads=op.value_heads,
        scale=op.key_dim**-0.5,
    )
    writer.values[op.result] = outputs[0]
