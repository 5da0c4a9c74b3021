"""The ONNX graph of a decoder, from its spec and formats alone.

Inputs and outputs are in docs/architecture.md. Positions come from `attention_mask`, so that past
arrays may be longer than what they hold (a buffer shared by past and present) and batches may be
padded on the right. `logits_start` says from which of the new tokens on logits are wanted: a
prefill need not multiply by the whole head. Norms are written with standard operators, which
onnxruntime fuses.

Source: onnxruntime, docs/ContribOperators.md: MatMulNBits, GatherBlockQuantized, RotaryEmbedding,
GroupQueryAttention. Its `local_window_size` counts the token itself, as `LayerSpec.window` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgetok.converter.write.onnx_nodes import (
    EDGETOK,
    IR_VERSION,
    MICROSOFT,
    OPSET,
    GraphWriter,
    external_tensor,
    three_bit_functions,
)
from edgetok.errors import UnsupportedError
from edgetok.formats.layout import (
    FORMAT_KEY,
    FORMAT_VERSION,
    LOGITS_START,
    SPEC_KEY,
    Layout,
    TensorFormat,
    cache_head_dim,
    linear_shapes,
)
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec, RopeSpec

_Rotation = tuple[str, str]


def build(
    spec: DecoderSpec,
    layout: Layout,
    formats: Mapping[str, TensorFormat],
    *,
    accuracy_level: int = 4,
) -> onnx.ModelProto:
    """Write the graph; weights stay outside, in `model.onnx.data`.

    Args:
        spec: the decoder.
        layout: what `plan(spec, formats)` gave.
        formats: of each linear layer and of the embedding, by canonical name.
        accuracy_level: of MatMulNBits; 4 multiplies int8 activations, 0 is exact.

    Raises:
        UnsupportedError: GroupQueryAttention cannot express the spec.
    """
    if spec.attn_scale <= 0:
        raise UnsupportedError(
            f"attn_scale is {spec.attn_scale}, expected above 0: GroupQueryAttention would take "
            "its own"
        )
    writer = _DecoderWriter(spec, formats, accuracy_level)
    writer.write()
    initializers = [external_tensor(slot) for slot in layout.tensors.values()]
    initializers += [external_tensor(slot) for slot in layout.aliases.values()]
    initializers += writer.g.constants.values()
    # An initializer that is an input too is one that a caller may leave out.
    initializers.append(helper.make_tensor(LOGITS_START, TensorProto.INT64, [1], [0]))
    inputs, outputs = _values(spec)
    graph = helper.make_graph(writer.g.nodes, "decoder", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    functions = []
    if any(form.bits == 3 for form in formats.values()):
        opsets.append(helper.make_opsetid(EDGETOK, 1))
        functions = three_bit_functions()
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="edgetok",
    )
    helper.set_model_props(model, {FORMAT_KEY: FORMAT_VERSION, SPEC_KEY: spec.to_json()})
    return model


def _values(spec: DecoderSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    heads, dim = spec.num_kv_heads, cache_head_dim(spec)
    inputs = [
        value("input_ids", TensorProto.INT64, "batch", "tokens"),
        value("attention_mask", TensorProto.INT64, "batch", "total_tokens"),
    ]
    inputs.append(value(LOGITS_START, TensorProto.INT64, 1))
    outputs = [value("logits", TensorProto.FLOAT, "batch", "logit_tokens", spec.vocab_size)]
    for i in range(spec.num_layers):
        for kind in ("key", "value"):
            past, present = f"past_key_values.{i}.{kind}", f"present.{i}.{kind}"
            inputs.append(value(past, TensorProto.FLOAT, "batch", heads, "past_tokens", dim))
            outputs.append(value(present, TensorProto.FLOAT, "batch", heads, "present_tokens", dim))
    return inputs, outputs


class _DecoderWriter:
    """Writes one decoder; every method appends nodes and returns the name of its result."""

    def __init__(
        self, spec: DecoderSpec, formats: Mapping[str, TensorFormat], accuracy_level: int
    ) -> None:
        self.g = GraphWriter()
        self.spec = spec
        self.formats = formats
        self.shapes = linear_shapes(spec)
        self.accuracy_level = accuracy_level
        self.rotations: dict[int, _Rotation] = {}

    def write(self) -> None:
        g, spec = self.g, self.spec
        self._lengths()
        x = self._scaled(self._embed(), spec.embed_scale, "embed_tokens")
        for i in range(spec.num_layers):
            x = self._layer(i, x)
        last = g.ints(np.iinfo(np.int64).max)
        x = g.op("Slice", [x, LOGITS_START, last, g.ints(1)], "final_norm")
        x = self._norm(x, "final_norm")
        x = self._linear(x, "lm_head")
        x = self._scaled(x, spec.logit_scale, "lm_head")
        if spec.logit_softcap:
            cap = g.float(spec.logit_softcap)
            x = g.op("Tanh", [g.op("Div", [x, cap], "softcap")], "softcap")
            x = g.op("Mul", [x, cap], "softcap")
        g.op("Identity", [x], "logits", outputs=["logits"])

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

    def _rotation(self, index: int) -> _Rotation:
        """Cos and sin, [B * T, rotary_dim / 2] each, for the new tokens."""
        if index in self.rotations:
            return self.rotations[index]
        g, rope, scope = self.g, self.spec.ropes[index], f"rope.{index}"
        frequencies = self._frequencies(rope, scope)
        angles = g.op("Mul", [self.positions, frequencies], scope)
        cos = self._scaled(g.op("Cos", [angles], scope), rope.attention_factor, scope)
        sin = self._scaled(g.op("Sin", [angles], scope), rope.attention_factor, scope)
        self.rotations[index] = cos, sin
        return cos, sin

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

    def _embed(self) -> str:
        g, scope = self.g, "embed_tokens"
        name = "lm_head" if self.spec.tied else "embed_tokens"
        form, hidden = self.formats[name], self.spec.hidden_size
        if not form.quantised:
            rows = g.op("Gather", [f"{name}.weight", "input_ids"], scope, axis=0)
            return rows if form.bits == 32 else g.op("Cast", [rows], scope, to=TensorProto.FLOAT)
        if form.bits == 3:
            return self._embed_3_bits(name, form)
        scales = g.op("Cast", [f"{name}.scales"], scope, to=TensorProto.FLOAT)
        padded = g.op(
            "GatherBlockQuantized",
            ["embed_tokens.qweight", "input_ids", scales] + [f"{name}.zeros"] * form.zeros,
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

    def _embed_3_bits(self, name: str, form: TensorFormat) -> str:
        g, scope = self.g, "embed_tokens"
        ids = g.op("Reshape", ["input_ids", g.ints(-1)], scope)
        suffixes = ["qweight", "qweight_high", "scales"] + ["zeros"] * form.zeros
        rows = [g.op("Gather", [f"{name}.{suffix}", ids], scope, axis=0) for suffix in suffixes]
        if not form.zeros:
            rows.append(self._middle_zero())
        flat = g.op("Dequantize3Bits", rows, scope, domain=EDGETOK, K=self.spec.hidden_size)
        shape = g.op("Concat", [g.op("Shape", ["input_ids"], scope), g.ints(-1)], scope, axis=0)
        return g.op("Reshape", [flat, shape], scope)

    def _middle_zero(self) -> str:
        return self.g.array("zeros_3_bits", np.array([[4]], np.uint8))

    def _linear(self, x: str, name: str) -> str:
        g, form, shape = self.g, self.formats[name], self.shapes[name]
        size: dict[str, Any] = {"N": shape.N, "K": shape.K, "block_size": form.group_size}
        zeros = [f"{name}.zeros"] * form.zeros
        if form.bits == 3:
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
                accuracy_level=self.accuracy_level,
                **size,
            )
        else:
            weight = f"{name}.weight"
            if form.bits == 16:
                weight = g.op("Cast", [weight], name, to=TensorProto.FLOAT)
            y = g.op("MatMul", [x, g.op("Transpose", [weight], name, perm=[1, 0])], name)
        return g.op("Add", [y, f"{name}.bias"], name) if shape.bias else y

    def _norm(self, x: str, name: str) -> str:
        """RMSNorm over the last axis."""
        g = self.g
        square = g.op("Pow", [x, g.float(2.0)], name)
        mean = g.op("ReduceMean", [square, g.ints(-1)], name, keepdims=1)
        root = g.op("Sqrt", [g.op("Add", [mean, g.float(self.spec.norm_eps)], name)], name)
        return g.op("Mul", [g.op("Div", [x, root], name), f"{name}.weight"], name)

    def _scaled(self, x: str, factor: float, scope: str) -> str:
        return x if factor == 1.0 else self.g.op("Mul", [x, self.g.float(factor)], scope)

    def _qk_norm(self, x: str, name: str, heads: int) -> str:
        g, spec = self.g, self.spec
        if spec.qk_norm == "full":
            x = self._norm(x, name)
        elif spec.qk_norm == "head":
            x = g.op("Reshape", [x, g.ints(0, 0, heads, spec.head_dim)], name)
            x = g.op("Reshape", [self._norm(x, name), g.ints(0, 0, -1)], name)
        return x

    def _rotate(self, x: str, scope: str, index: int, heads: int) -> str:
        if index < 0:
            return x
        cos, sin = self._rotation(index)
        rotary_dim = self.spec.ropes[index].rotary_dim
        partial = rotary_dim != self.spec.head_dim
        return self.g.op(
            "RotaryEmbedding",
            [x, self.rotation_rows, cos, sin],
            scope,
            domain=MICROSOFT,
            num_heads=heads,
            rotary_embedding_dim=rotary_dim if partial else 0,
        )

    def _padded(self, x: str, scope: str, heads: int) -> str:
        """GroupQueryAttention wants head_dim a multiple of 8: zeros at the end of each head."""
        g, dim, wide = self.g, self.spec.head_dim, cache_head_dim(self.spec)
        if dim == wide:
            return x
        x = g.op("Reshape", [x, g.ints(0, 0, heads, dim)], scope)
        x = g.op("Pad", [x, g.ints(0, 0, 0, 0, 0, 0, 0, wide - dim)], scope)
        return g.op("Reshape", [x, g.ints(0, 0, heads * wide)], scope)

    def _unpadded(self, x: str, scope: str) -> str:
        g, dim, wide = self.g, self.spec.head_dim, cache_head_dim(self.spec)
        if dim == wide:
            return x
        x = g.op("Reshape", [x, g.ints(0, 0, self.spec.num_heads, wide)], scope)
        x = g.op("Slice", [x, g.ints(0), g.ints(dim), g.ints(3)], scope)
        return g.op("Reshape", [x, g.ints(0, 0, self.spec.num_heads * dim)], scope)

    def _attention(self, i: int, x: str) -> str:
        spec, layer, scope = self.spec, self.spec.layers[i], f"layers.{i}"
        heads, kv_heads = spec.num_heads, spec.num_kv_heads
        q = self._qk_norm(self._linear(x, f"{scope}.q_proj"), f"{scope}.q_norm", heads)
        k = self._qk_norm(self._linear(x, f"{scope}.k_proj"), f"{scope}.k_norm", kv_heads)
        v = self._linear(x, f"{scope}.v_proj")
        q = self._padded(self._rotate(q, scope, layer.rope, heads), scope, heads)
        k = self._padded(self._rotate(k, scope, layer.rope, kv_heads), scope, kv_heads)
        v = self._padded(v, scope, kv_heads)
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
        attributes |= {"scale": float(spec.attn_scale), "do_rotary": 0}
        if layer.window:
            attributes["local_window_size"] = layer.window
        if spec.attn_softcap:
            attributes["softcap"] = float(spec.attn_softcap)
        attended = self.g.op(
            "GroupQueryAttention",
            [q, k, v, *past, self.last_positions, self.total_tokens],
            scope,
            domain=MICROSOFT,
            outputs=[f"{scope}/attended", f"present.{i}.key", f"present.{i}.value"],
            **attributes,
        )
        return self._linear(self._unpadded(attended, scope), f"{scope}.o_proj")

    def _mlp(self, i: int, x: str) -> str:
        g, scope = self.g, f"layers.{i}"
        gate = self._linear(x, f"{scope}.gate_proj")
        if self.spec.activation == "silu":
            gate = g.op("Mul", [gate, g.op("Sigmoid", [gate], scope)], f"{scope}.silu")
        else:
            kind = "tanh" if self.spec.activation == "gelu_tanh" else "none"
            gate = g.op("Gelu", [gate], scope, approximate=kind)
        up = self._linear(x, f"{scope}.up_proj")
        return self._linear(g.op("Mul", [gate, up], f"{scope}.gated"), f"{scope}.down_proj")

    def _layer(self, i: int, x: str) -> str:
        spec, scope = self.spec, f"layers.{i}"
        parts = (
            (self._attention, "input_norm", "post_attention_norm"),
            (self._mlp, "pre_mlp_norm", "post_mlp_norm"),
        )
        for part, before, after in parts:
            y = part(i, self._norm(x, f"{scope}.{before}") if spec.pre_norm else x)
            if spec.post_norm:
                y = self._norm(y, f"{scope}.{after}")
            x = self.g.op("Add", [x, self._scaled(y, spec.residual_scale, scope)], scope)
        return x


def _row(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(1, -1)
