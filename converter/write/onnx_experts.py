"""Experts as ONNX nodes of standard operators.

A layer's choices are sorted by expert. The rows that an expert gets, perhaps none, are a piece of
one `Split`, and its matrix is a piece of another, over initializers, which onnxruntime computes
when it loads the graph. So each expert multiplies its own rows alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgetok.converter.write.onnx_decoder import DecoderWriter
from edgetok.formats.layout import TABLE, LinearShape, expert_name, linear_tensors
from edgetok.models.layers.experts import ExpertLinear, MixExperts, Route


def route(writer: DecoderWriter, op: Route) -> None:
    """Numbers of the chosen experts and their shares, [B, T, top]."""
    g, scope, scores = writer.g, f"layers.{op.layer}.route", writer.values[op.source]
    kind = "Sigmoid" if op.score == "sigmoid" else "Softmax"
    p = g.op(kind, [scores], scope)
    keys = g.op("Add", [p, op.bias], scope) if op.bias else p
    outputs = [f"{scope}/keys", f"{scope}/chosen"]
    g.op("TopK", [keys, g.ints(op.top)], scope, outputs=outputs, axis=-1, largest=1, sorted=1)
    shares = g.op("GatherElements", [p, outputs[1]], scope, axis=-1)
    if op.normed:
        total = g.op("ReduceSum", [shares, g.ints(-1)], scope, keepdims=1)
        if op.sum_eps:
            total = g.op("Add", [total, g.float(op.sum_eps)], scope)
        shares = g.op("Div", [shares, total], scope)
    shares = writer.scaled(shares, op.factor, scope)
    if op.scales:
        shares = g.op("Mul", [shares, g.op("Gather", [op.scales, outputs[1]], scope)], scope)
    writer.values[op.shares] = shares
    writer.values[op.chosen] = outputs[1]
    _sort(writer, op)


def _sort(writer: DecoderWriter, op: Route) -> None:
    """Choices in order of their experts, the way back, and how many each expert has."""
    g, scope = writer.g, f"layers.{op.layer}.sort"
    flat = g.op("Reshape", [outputs := writer.values[op.chosen], g.ints(-1)], scope)
    count = g.op("Shape", [flat], scope)
    order, back = f"{scope}/order", f"{scope}/back"
    rising: dict[str, Any] = {"axis": -1, "largest": 0, "sorted": 1}
    g.op("TopK", [flat, count], scope, outputs=[f"{scope}/sorted", order], **rising)
    g.op("TopK", [order, count], scope, outputs=[f"{scope}/same", back], **rising)
    numbers = g.array(f"experts.{op.experts}", np.arange(op.experts, dtype=np.int64))
    column = g.op("Unsqueeze", [flat, g.ints(-1)], scope)
    hits = g.op("Cast", [g.op("Equal", [column, numbers], scope)], scope, to=TensorProto.INT64)
    counts = g.op("ReduceSum", [hits, g.ints(0)], scope, keepdims=0)
    tokens = g.op("Div", [order, g.int(op.top)], scope)
    shape = g.op("Slice", [g.op("Shape", [outputs], scope), g.ints(0), g.ints(2)], scope)
    writer.values |= {
        f"{op.chosen} {part}": value
        for part, value in (
            ("order", order),
            ("back", back),
            ("counts", counts),
            ("tokens", tokens),
            ("shape", shape),
        )
    }


def expert_linear(writer: DecoderWriter, op: ExpertLinear) -> None:
    """Each expert's rows times its matrix, and all of them back in order: [B, T, top * N]."""
    g, name = writer.g, op.weight
    sort = {part: writer.values[f"{op.chosen} {part}"] for part in ("back", "counts", "shape")}
    rows = writer.values[f"{op.chosen} {'order' if op.apart else 'tokens'}"]
    x = g.op("Reshape", [writer.values[op.source], g.ints(1, -1, op.inputs)], name)
    x = g.op("Gather", [x, rows], name, axis=1)
    pieces = [f"{expert_name(name, e)}/rows" for e in range(op.experts)]
    g.op("Split", [x, sort["counts"]], name, outputs=pieces, axis=1)
    form = writer.formats[name]
    shape = LinearShape(op.outputs, op.inputs, op.bias)
    for tensor in linear_tensors(name, LinearShape(op.experts * op.outputs, op.inputs), form):
        _split(writer, op, tensor)
    if op.bias:
        _split(writer, op, f"{name}.bias")
    results = [
        writer.linear(piece, expert_name(name, e), form, shape) for e, piece in enumerate(pieces)
    ]
    y = g.op("Concat", results, name, axis=1)
    y = g.op("Gather", [y, sort["back"]], name, axis=1)
    wanted = g.op("Concat", [sort["shape"], g.ints(op.top * op.outputs)], name, axis=0)
    writer.values[op.result] = g.op("Reshape", [y, wanted], name)


def _split(writer: DecoderWriter, op: ExpertLinear, tensor: str) -> None:
    suffix = tensor.removeprefix(op.weight)
    parts = [expert_name(op.weight, e) + suffix for e in range(op.experts)]
    if suffix == TABLE:
        for part in parts:
            writer.g.op("Identity", [tensor], op.weight, outputs=[part])
        return
    writer.g.op("Split", [tensor], op.weight, outputs=parts, axis=0, num_outputs=op.experts)


def mix_experts(writer: DecoderWriter, op: MixExperts) -> None:
    """The sum of results times shares."""
    g, scope = writer.g, f"layers.{op.layer}.mix"
    y = g.op("Reshape", [writer.values[op.source], g.ints(0, 0, op.top, op.size)], scope)
    shares = g.op("Unsqueeze", [writer.values[op.shares], g.ints(-1)], scope)
    y = g.op("ReduceSum", [g.op("Mul", [y, shares], scope), g.ints(2)], scope, keepdims=0)
    y = writer.scaled(y, op.scale, scope)
    if op.add:
        y = g.op("Add", [writer.values[op.result], y], scope)
    writer.values[op.result] = y
