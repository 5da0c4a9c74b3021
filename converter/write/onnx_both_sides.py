"""Attention to both sides as ONNX nodes: GroupQueryAttention sees what is before a token alone.

softmax(softcap(scale * q k^T)) v over the tokens of a text that are at most `window - 1` away, with
standard operators. There is no past; tokens that `attention_mask` leaves out are seen by none.
"""

from __future__ import annotations

import numpy as np

from edgetok.converter.write.onnx_decoder import DecoderWriter
from edgetok.errors import UnsupportedError
from edgetok.models import ops

_UNSEEN = -1e30  # in the place of a score: its weight is 0, and a row without any has no NaN


def attend(writer: DecoderWriter, op: ops.Attend, scope: str) -> None:
    """Append the nodes of one layer's attention.

    Raises:
        UnsupportedError: heads have sinks.
    """
    if op.sinks:
        raise UnsupportedError("the ONNX graph has no sinks for tokens that see both sides")
    g = writer.g
    queries = _heads(writer, writer.values[op.queries], op.heads, op, scope)
    keys, values = (
        _heads(writer, stored, op.kv_heads, op, scope) for stored in writer.stored[op.stored_layer]
    )
    turned = g.op("Transpose", [keys], scope, perm=[0, 1, 3, 2])
    scores = g.op("MatMul", [queries, turned], scope)
    scores = g.op("Mul", [scores, g.float(float(op.scale))], scope)
    if op.softcap:
        cap = g.float(float(op.softcap))
        scores = g.op("Mul", [g.op("Tanh", [g.op("Div", [scores, cap], scope)], scope), cap], scope)
    for unseen in _unseen(writer, op.window, scope):
        scores = g.op("Where", [unseen, g.float(_UNSEEN), scores], scope)
    weights = g.op("Softmax", [scores], scope, axis=-1)
    mixed = g.op("MatMul", [weights, values], scope)
    mixed = g.op("Transpose", [mixed], scope, perm=[0, 2, 1, 3])
    shape = g.ints(0, 0, op.heads * op.head_dim)
    writer.values[op.result] = g.op("Reshape", [mixed, shape], scope)


def _heads(writer: DecoderWriter, x: str, heads: int, op: ops.Attend, scope: str) -> str:
    """[B, T, heads * D] as [B, H, T, D], heads of keys and values repeated."""
    g = writer.g
    x = g.op("Reshape", [x, g.ints(0, 0, heads, op.head_dim)], scope)
    if heads != op.heads:
        which = np.arange(op.heads, dtype=np.int64) // (op.heads // heads)
        x = g.op("Gather", [x, g.array(f"heads.{heads}", which)], scope, axis=2)
    return g.op("Transpose", [x], scope, perm=[0, 2, 1, 3])


def _unseen(writer: DecoderWriter, window: int, scope: str) -> list[str]:
    """Build a mask of tokens (last axis) that another does not see: padding, or beyond a window."""
    g = writer.g
    padding = g.op("Equal", ["attention_mask", g.int(0)], scope)
    found = [g.op("Unsqueeze", [padding, g.ints(1, 2)], scope)]
    if window:
        shape = g.op("Shape", ["input_ids"], scope)
        tokens = g.op("Gather", [shape, g.int(1)], scope, axis=0)
        at = g.op("Range", [g.int(0), tokens, g.int(1)], scope)
        rows, columns = (g.op("Unsqueeze", [at, g.ints(axis)], scope) for axis in (1, 0))
        apart = g.op("Sub", [rows, columns], scope)
        apart = g.op("Mul", [apart, apart], scope)
        found.append(g.op("Greater", [apart, g.int((window - 1) ** 2)], scope))
    return found
