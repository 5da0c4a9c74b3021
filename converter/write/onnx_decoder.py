"""The ONNX graph of a decoder as it grows: values by name, and the nodes that several kinds share.

Source: onnxruntime, docs/ContribOperators.md: MatMulNBits, GatherBlockQuantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from edgetok.converter.write.onnx_nodes import EDGETOK, MICROSOFT, GraphWriter
from edgetok.converter.write.onnx_planes import Planes
from edgetok.formats.layout import (
    LOGITS_START,
    LinearShape,
    TensorFormat,
    cache_head_dim,
    linear_shapes,
)
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec, RopeSpec

_Rotation = tuple[str, str]


class DecoderWriter:
    """A graph to which operations append their nodes.

    Attributes:
        g: collects the nodes.
        values: for each value of the decoder the name of what it is now.
        stored: for each layer the names of the keys and values that it stores.
    """

    def __init__(
        self, spec: DecoderSpec, formats: Mapping[str, TensorFormat], accuracy_level: int
    ) -> None:
        """Begin with an empty graph; arguments are those of `onnx_graph.build`."""
        self.g = GraphWriter()
        self.spec = spec
        self.formats = formats
        self.values: dict[str, str] = {}
        self.stored: dict[int, tuple[str, str]] = {}
        self._shapes = linear_shapes(spec)
        self._accuracy_level = accuracy_level
        self._planes = Planes(self.g, accuracy_level)
        self._rotations: dict[int, _Rotation] = {}
        self._growths: dict[str, str] = {}
        self._lengths()

    def keep_wanted_rows(self, value: str) -> None:
        """Leave out the rows before `logits_start`."""
        g = self.g
        end = g.ints(np.iinfo(np.int64).max)
        rows = [self.values[value], LOGITS_START, end, g.ints(1)]
        self.values[value] = g.op("Slice", rows, "final_norm")

    def finish(self, value: str, output: str) -> None:
        """Make a value an output of the graph."""
        self.g.op("Identity", [self.values[value]], output, outputs=[output])

    def _lengths(self) -> None:
        """Lengths and positions, from the shapes and the mask."""
        g = self.g
        mask_shape = g.op("Shape", ["attention_mask"], "lengths")
        total = g.op("Gather", [mask_shape, g.int(1)], "lengths", axis=0)
        self.total_tokens = g.op("Cast", [total], "lengths", to=TensorProto.INT32)
        seen = g.op("ReduceSum", ["attention_mask", g.ints(1)], "lengths", keepdims=0)
        last = g.op("Sub", [seen, g.int(1)], "lengths")
        self.last_positions = g.op("Cast", [last], "lengths", to=TensorProto.INT32)

        ids_shape = g.op("Shape", ["input_ids"], "positions")
        tokens = g.op("Gather", [ids_shape, g.ints(1)], "positions", axis=0)
        counted = g.op("CumSum", ["attention_mask", g.int(1)], "positions")
        start = g.op("Neg", [tokens], "positions")
        end = g.ints(np.iinfo(np.int64).max)
        new = g.op("Slice", [counted, start, end, g.ints(1)], "positions")
        new = g.op("Max", [g.op("Sub", [new, g.int(1)], "positions"), g.int(0)], "positions")
        flat = g.op("Reshape", [new, g.ints(-1, 1)], "positions")
        self.positions = g.op("Cast", [flat], "positions", to=TensorProto.FLOAT)
        # cos and sin hold a row for each new token, so that a token's row is its own number.
        size = g.op("Size", ["input_ids"], "positions")
        rows = g.op("Range", [g.int(0), size, g.int(1)], "positions")
        self.rotation_rows = g.op("Reshape", [rows, ids_shape], "positions")

    def rotation(self, index: int) -> _Rotation:
        """Cos and sin, [B * T, rotary_dim / 2] each, for the new tokens."""
        if index in self._rotations:
            return self._rotations[index]
        g, rope, scope = self.g, self.spec.ropes[index], f"rope.{index}"
        frequencies = self._frequencies(rope, scope)
        angles = g.op("Mul", [self.positions, frequencies], scope)
        cos = self.scaled(g.op("Cos", [angles], scope), rope.attention_factor, scope)
        sin = self.scaled(g.op("Sin", [angles], scope), rope.attention_factor, scope)
        self._rotations[index] = cos, sin
        return cos, sin

    def growth(self, growth: float, every: int) -> str:
        """1 + growth * log(1 + floor(position / every)), [B, T, 1], for the new tokens."""
        g, scope = self.g, f"growth.{growth:g}.{every}"
        if scope not in self._growths:
            times = g.op(
                "Floor", [g.op("Div", [self.positions, g.float(float(every))], scope)], scope
            )
            log = g.op("Log", [g.op("Add", [times, g.float(1.0)], scope)], scope)
            factor = g.op("Add", [g.op("Mul", [log, g.float(growth)], scope), g.float(1.0)], scope)
            shape = g.op("Concat", [g.op("Shape", ["input_ids"], scope), g.ints(1)], scope, axis=0)
            self._growths[scope] = g.op("Reshape", [factor, shape], scope)
        return self._growths[scope]

    def _frequencies(self, rope: RopeSpec, scope: str) -> str:
        g = self.g
        original = rope.original_context_tokens
        short = g.array(f"{scope}.inv_freq", _row(inv_freq(rope, original)))
        if rope.scaling != "longrope":
            return short
        long = g.array(f"{scope}.inv_freq_long", _row(inv_freq(rope, original + 1)))
        limit = g.array(f"{scope}.limit", np.array(original, np.int32))
        # A past array that is longer than what it holds shows how long a conversation may become:
        # the long factors then hold from its first token on, and no key has the wrong ones.
        past = g.op("Shape", ["past_key_values.0.key"], scope)
        past = g.op("Gather", [past, g.int(2)], scope, axis=0)
        past = g.op("Cast", [past], scope, to=TensorProto.INT32)
        may_reach = g.op("Max", [self.total_tokens, past], scope)
        is_long = g.op("Greater", [may_reach, limit], scope)
        return g.op("Where", [is_long, long, short], scope)

    def scaled(self, x: str, factor: float, scope: str) -> str:
        """Return the name of a value times a number."""
        return x if factor == 1.0 else self.g.op("Mul", [x, self.g.float(factor)], scope)

    def embed(self, scope: str, hidden: int) -> str:
        """Rows of an embedding, `hidden` wide, for `input_ids`."""
        g = self.g
        name = "lm_head" if self.spec.tied and scope == "embed_tokens" else scope
        form = self.formats[name]
        if not form.quantised:
            rows = g.op("Gather", [f"{name}.weight", "input_ids"], scope, axis=0)
            return rows if form.bits == 32 else g.op("Cast", [rows], scope, to=TensorProto.FLOAT)
        if form.grouped:
            return self._planes.rows("input_ids", name, form, hidden, scope)
        if form.bits == 3:
            return self._embed_3_bits(name, form, scope, hidden)
        scales = g.op("Cast", [f"{name}.scales"], scope, to=TensorProto.FLOAT)
        padded = g.op(
            "GatherBlockQuantized",
            [f"{scope}.qweight", "input_ids", scales] + [f"{name}.zeros"] * form.zeros,
            scope,
            domain=MICROSOFT,
            bits=form.bits,
            block_size=form.group_size,
            gather_axis=0,
            quantize_axis=1,
        )
        if hidden % form.group_size == 0:
            return padded
        return g.op("Slice", [padded, g.ints(0), g.ints(hidden), g.ints(2)], scope)

    def _embed_3_bits(self, name: str, form: TensorFormat, scope: str, hidden: int) -> str:
        g = self.g
        ids = g.op("Reshape", ["input_ids", g.ints(-1)], scope)
        suffixes = ["qweight", "qweight_high", "scales"] + ["zeros"] * form.zeros
        rows = [g.op("Gather", [f"{name}.{suffix}", ids], scope, axis=0) for suffix in suffixes]
        if not form.zeros:
            rows.append(self._middle_zero())
        flat = g.op("Dequantize3Bits", rows, scope, domain=EDGETOK, K=hidden)
        shape = g.op("Concat", [g.op("Shape", ["input_ids"], scope), g.ints(-1)], scope, axis=0)
        return g.op("Reshape", [flat, shape], scope)

    def _middle_zero(self) -> str:
        return self.g.array("zeros_3_bits", np.array([[4]], np.uint8))

    def linear(
        self,
        x: str,
        name: str,
        form: TensorFormat | None = None,
        shape: LinearShape | None = None,
    ) -> str:
        """x weight^T + bias; format and shape are the spec's, where they are not given."""
        g, form, shape = self.g, form or self.formats[name], shape or self._shapes[name]
        size: dict[str, Any] = {"N": shape.N, "K": shape.K, "block_size": form.group_size}
        zeros = [f"{name}.zeros"] * form.zeros
        if form.grouped:
            y = self._planes.linear(x, name, form, shape)
        elif form.bits == 3:
            planes = [f"{name}.{suffix}" for suffix in ("qweight", "qweight_high", "scales")]
            weights = planes + (zeros or [self._middle_zero()])
            y = g.op("MatMul3Bits", [x, *weights], name, domain=EDGETOK, **size)
        elif form.quantised:
            scales = g.op("Cast", [f"{name}.scales"], name, to=TensorProto.FLOAT)
            y = g.op(
                "MatMulNBits",
                [x, f"{name}.qweight", scales, *zeros],
                name,
                domain=MICROSOFT,
                bits=form.bits,
                accuracy_level=self._accuracy_level,
                **size,
            )
        else:
            weight = f"{name}.weight"
            if form.bits == 16:
                weight = g.op("Cast", [weight], name, to=TensorProto.FLOAT)
            y = g.op("MatMul", [x, g.op("Transpose", [weight], name, perm=[1, 0])], name)
        return g.op("Add", [y, f"{name}.bias"], name) if shape.bias else y

    def norm(self, x: str, name: str, eps: float, *, weighted: bool = True) -> str:
        """RMSNorm over the last axis; `name` is its weight's, or where it is."""
        g = self.g
        square = g.op("Pow", [x, g.float(2.0)], name)
        mean = g.op("ReduceMean", [square, g.ints(-1)], name, keepdims=1)
        root = g.op("Sqrt", [g.op("Add", [mean, g.float(eps)], name)], name)
        normed = g.op("Div", [x, root], name)
        return g.op("Mul", [normed, f"{name}.weight"], name) if weighted else normed

    def padded(self, x: str, scope: str, heads: int, dim: int) -> str:
        """Pad head_dim to a multiple of 8, as GroupQueryAttention needs, with zeros."""
        g, wide = self.g, cache_head_dim(dim)
        if dim == wide:
            return x
        x = g.op("Reshape", [x, g.ints(0, 0, heads, dim)], scope)
        x = g.op("Pad", [x, g.ints(0, 0, 0, 0, 0, 0, 0, wide - dim)], scope)
        return g.op("Reshape", [x, g.ints(0, 0, heads * wide)], scope)

    def unpadded(self, x: str, scope: str, heads: int, dim: int) -> str:
        """Undo `padded`."""
        g, wide = self.g, cache_head_dim(dim)
        if dim == wide:
            return x
        x = g.op("Reshape", [x, g.ints(0, 0, heads, wide)], scope)
        x = g.op("Slice", [x, g.ints(0), g.ints(dim), g.ints(3)], scope)
        return g.op("Reshape", [x, g.ints(0, 0, heads * dim)], scope)


def _row(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(1, -1)
