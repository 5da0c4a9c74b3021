"""Several residual streams, and sparse gates, as ONNX nodes of standard operators."""

from __future__ import annotations

from edgetok.converter.write.onnx_decoder import DecoderWriter
from edgetok.models.layers.altup import AddEach, CorrectStreams, MatchSize, MixStreams
from edgetok.models.ops import Sparsify

_END = 1 << 31


def sparsify(writer: DecoderWriter, op: Sparsify) -> None:
    """max(x - mean - spread * deviation, 0)."""
    g, scope = writer.g, f"layers.{op.layer}.sparsify"
    x = writer.values[op.value]
    x = g.op("Sub", [x, g.op("ReduceMean", [x, g.ints(-1)], scope, keepdims=1)], scope)
    deviation = g.op("Sqrt", [_mean_square(writer, x, scope)], scope)
    x = g.op("Sub", [x, g.op("Mul", [deviation, g.float(op.spread)], scope)], scope)
    writer.values[op.value] = g.op("Max", [x, g.float(0.0)], scope)


def mix_streams(writer: DecoderWriter, op: MixStreams) -> None:
    """The product of coefficients and streams, and the streams."""
    g, scope = writer.g, f"layers.{op.layer}.mix_streams"
    s = g.op("Concat", [writer.values[op.value], writer.values[op.others]], scope, axis=2)
    s = g.op("Reshape", [s, g.ints(0, 0, op.streams, op.size)], scope)
    coefs = writer.values[op.coefs]
    coefs = g.op("Reshape", [coefs, g.ints(0, 0, op.streams, op.streams)], scope)
    s = g.op("Add", [s, g.op("MatMul", [coefs, s], scope)], scope)
    writer.values[op.result] = g.op("Reshape", [s, g.ints(0, 0, -1)], scope)


def correct_streams(writer: DecoderWriter, op: CorrectStreams) -> None:
    """The predictions and, each times its coefficient, the error of the first."""
    g, scope = writer.g, f"layers.{op.layer}.correct_streams"
    predicted = writer.values[op.source]
    p = g.op("Reshape", [predicted, g.ints(0, 0, op.streams, op.size)], scope)
    change = g.op(
        "Sub", [writer.values[op.value], _part(writer, predicted, 0, op.size, scope)], scope
    )
    change = g.op("Unsqueeze", [change, g.ints(2)], scope)
    factors = g.op("Add", [writer.values[op.coefs], g.float(1.0)], scope)
    factors = g.op("Unsqueeze", [factors, g.ints(3)], scope)
    s = g.op("Add", [p, g.op("Mul", [change, factors], scope)], scope)
    s = g.op("Reshape", [s, g.ints(0, 0, -1)], scope)
    first = _part(writer, s, 0, op.size, scope)
    writer.values[op.value] = first
    writer.values[op.others] = _part(writer, s, op.size, _END, scope)
    writer.values[op.result] = g.op("Mul", [first, op.scale], scope) if op.scale else first


def match_size(writer: DecoderWriter, op: MatchSize) -> None:
    """Values times the quotient of the two root mean squares."""
    g = writer.g
    scope = f"{op.value}.size"
    x = g.op("Reshape", [writer.values[op.value], g.ints(0, 0, op.count, op.size)], scope)
    like = g.op("Unsqueeze", [writer.values[op.like], g.ints(2)], scope)
    own = g.op("Max", [_mean_square(writer, x, scope), g.float(op.eps)], scope)
    factor = g.op("Sqrt", [g.op("Div", [_mean_square(writer, like, scope), own], scope)], scope)
    x = g.op("Mul", [x, factor], scope)
    writer.values[op.value] = g.op("Reshape", [x, g.ints(0, 0, -1)], scope)


def add_each(writer: DecoderWriter, op: AddEach) -> None:
    """The same added to several streams."""
    g, scope = writer.g, f"layers.{op.layer}.add_each"
    x = g.op("Reshape", [writer.values[op.value], g.ints(0, 0, op.count, op.size)], scope)
    x = g.op("Add", [x, g.op("Unsqueeze", [writer.values[op.source], g.ints(2)], scope)], scope)
    writer.values[op.value] = g.op("Reshape", [x, g.ints(0, 0, -1)], scope)


def _mean_square(writer: DecoderWriter, x: str, scope: str) -> str:
    g = writer.g
    return g.op("ReduceMean", [g.op("Mul", [x, x], scope), g.ints(-1)], scope, keepdims=1)


def _part(writer: DecoderWriter, x: str, first: int, end: int, scope: str) -> str:
    g = writer.g
    return g.op("Slice", [x, g.ints(first), g.ints(end), g.ints(2)], scope)
