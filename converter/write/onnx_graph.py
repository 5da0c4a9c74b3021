"""The ONNX graph of a decoder, from its spec and formats alone.

Inputs and outputs are in docs/architecture.md. Positions come from `attention_mask`, so that past
arrays may be longer than what they hold (a buffer shared by past and present) and batches may be
padded on the right. `logits_start` says from which of the new tokens on logits are wanted: a
prefill need not multiply by the whole head. Norms are written with standard operators, which
onnxruntime fuses.

Which nodes an operation becomes is in `onnx_lowering.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from edgetok.converter.write.onnx_decoder import DecoderWriter
from edgetok.converter.write.onnx_lowering import lower
from edgetok.converter.write.onnx_nodes import (
    EDGETOK,
    IR_VERSION,
    MICROSOFT,
    OPSET,
    external_tensor,
    three_bit_functions,
)
from edgetok.errors import UnsupportedError
from edgetok.formats.layout import (
    CONSTANTS_KEY,
    CONSTANTS_VERSION,
    FORMAT_KEY,
    FORMAT_VERSION,
    LOGITS_START,
    SPEC_KEY,
    VECTORS,
    Layout,
    TensorFormat,
    cache_head_dim,
    graph_states,
)
from edgetok.models.operations import (
    body_operations,
    head_operations,
    operations,
    vector_operations,
)
from edgetok.models.ops import Store
from edgetok.models.spec import DecoderSpec


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
        formats: formats of each linear layer and of the embedding, by canonical name.
        accuracy_level: accuracy level of MatMulNBits; 4 multiplies int8 activations, 0 is exact.

    Raises:
        UnsupportedError: GroupQueryAttention cannot express the spec.
    """
    if spec.attn_scale <= 0:
        raise UnsupportedError(
            f"attn_scale is {spec.attn_scale}, expected above 0: GroupQueryAttention would take "
            "its own"
        )
    writer = DecoderWriter(spec, formats, accuracy_level)
    lower(writer, body_operations(spec))
    writer.keep_wanted_rows("x")
    lower(writer, head_operations(spec))
    writer.finish("logits", "logits")
    lower(writer, vector_operations(spec))
    if spec.both_sides:
        writer.finish("vector" if spec.vector_sizes else "h", VECTORS)
    initializers = [external_tensor(slot) for slot in layout.tensors.values()]
    initializers += [external_tensor(slot) for slot in layout.aliases.values()]
    initializers += writer.g.constants.values()
    # An initializer that is an input too is one that a caller may leave out.
    initializers.append(helper.make_tensor(LOGITS_START, TensorProto.INT64, [1], [0]))
    inputs, outputs = _values(spec)
    graph = helper.make_graph(writer.g.nodes, "decoder", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    functions = []
    if any(form.bits == 3 and not form.grouped for form in formats.values()):
        opsets.append(helper.make_opsetid(EDGETOK, 1))
        functions = three_bit_functions()
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        functions=functions,
        ir_version=IR_VERSION,
        producer_name="edgetok",
    )
    entries = {FORMAT_KEY: FORMAT_VERSION, SPEC_KEY: spec.to_json()}
    if layout.constants:
        entries[CONSTANTS_KEY] = CONSTANTS_VERSION
    helper.set_model_props(model, entries)
    return model


def _values(spec: DecoderSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def value(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    inputs = [
        value("input_ids", TensorProto.INT64, "batch", "tokens"),
        value("attention_mask", TensorProto.INT64, "batch", "total_tokens"),
    ]
    inputs.append(value(LOGITS_START, TensorProto.INT64, 1))
    outputs = [value("logits", TensorProto.FLOAT, "batch", "logit_tokens", spec.vocab_size)]
    if spec.both_sides:  # every text is whole, without a past
        size = spec.vector_size
        outputs.append(value(VECTORS, TensorProto.FLOAT, "batch", "logit_tokens", size))
        return inputs, outputs
    for op in operations(spec):
        i = op.layer
        if not isinstance(op, Store):
            continue
        heads, dim = op.heads, cache_head_dim(op.head_dim)
        for kind in ("key", "value"):
            past, present = f"past_key_values.{i}.{kind}", f"present.{i}.{kind}"
            inputs.append(value(past, TensorProto.FLOAT, "batch", heads, "past_tokens", dim))
            outputs.append(value(present, TensorProto.FLOAT, "batch", heads, "present_tokens", dim))
    for state in graph_states(spec):
        inputs.append(value(state.past, TensorProto.FLOAT, "batch", *state.shape))
        outputs.append(value(state.present, TensorProto.FLOAT, "batch", *state.shape))
    return inputs, outputs
