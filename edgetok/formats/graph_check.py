"""Check that an artefact's graph is the decoder that its spec describes.

The graph is read by onnxruntime, the spec by edgetok's own runtimes; both must mean one model. The
check covers initializers, operators and their attributes, inputs and outputs, not every edge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from edgetok.errors import ArtefactError
from edgetok.formats import onnx_model
from edgetok.formats.layout import (
    DATA_FILE,
    EMBEDDINGS,
    LOGITS_START,
    PRESENT_STATE,
    TABLE,
    VECTORS,
    Layout,
    LinearShape,
    TensorFormat,
    cache_head_dim,
    expert_name,
    graph_states,
    linear_shapes,
    present_name,
)
from edgetok.formats.onnx_scan import ExternalTensor, ScannedModel
from edgetok.models.layers.gated_delta import CausalConv
from edgetok.models.layers.short_conv import Convolution
from edgetok.models.operations import expert_counts, operations
from edgetok.models.ops import Attend, Linear, MatrixState, Store
from edgetok.models.spec import DecoderSpec

_TYPES = {
    "float32": onnx_model.FLOAT,
    "float16": onnx_model.FLOAT16,
    "uint8": onnx_model.UINT8,
    "int8": onnx_model.INT8,
}
_JOINED = ".codes"  # suffix of planes that nodes have joined to codes of 8 bits
_FUNCTIONS = {("edgetok", "Dequantize3Bits"), ("edgetok", "MatMul3Bits")}
_OPERATORS = {
    "": {
        "Add", "BitShift", "BitwiseAnd", "BitwiseOr", "Cast", "Clip", "Concat", "Conv", "Cos",
        "CumSum", "Div", "Equal", "Exp", "Floor", "Gather", "GatherElements", "Gelu", "Greater",
        "Identity", "Log", "MatMul", "Max", "Mul", "Neg", "Pad", "Pow", "Range", "ReduceMean",
        "ReduceSum", "Reshape", "Shape", "Sigmoid", "Sin", "Size", "Slice", "Softmax", "Softplus",
        "Split", "Sqrt", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where",
    },
    "com.microsoft": {
        "GatherBlockQuantized", "GroupQueryAttention", "LinearAttention", "MatMulNBits",
        "RotaryEmbedding",
    },
    "edgetok": {"Dequantize3Bits", "MatMul3Bits"},
}  # fmt: skip
_FUNCTION_OPERATORS = {
    "": _OPERATORS[""] | {"Constant"},
    "edgetok": _OPERATORS["edgetok"],
}
_MAX_CONSTANT_BYTES = 1 << 16

_Attributes = dict[str, int | float]


def read_formats(path: Path, scanned: ScannedModel, spec: DecoderSpec) -> dict[str, TensorFormat]:
    """Return the format of each linear layer and the embedding, from initializers and nodes.

    Raises:
        ArtefactError: one has no weights, no node, or numbers that no format has.
    """
    nodes = _nodes_by_weight(path, scanned.model, spec)
    stacked = expert_counts(operations(spec))
    formats = {}
    for name, shape in linear_shapes(spec).items():
        weight = scanned.initializers.get(f"{name}.weight")
        qweight = scanned.initializers.get(f"{name}.qweight")
        if (weight is None) == (qweight is None):
            raise ArtefactError(
                f"{path}: {name} has {'two kinds of' if weight else 'no'} weights; convert again"
            )
        if qweight is None:
            is_half = weight is not None and weight.data_type == onnx_model.FLOAT16
            formats[name] = TensorFormat(16 if is_half else 32)
        else:
            user = expert_name(name, 0) if name in stacked else name
            node = nodes.get(f"{user}.qweight")
            formats[name] = _quantised_format(path, name, shape, qweight, scanned, node)
    return formats


def check_graph(
    path: Path,
    scanned: ScannedModel,
    spec: DecoderSpec,
    formats: Mapping[str, TensorFormat],
    layout: Layout,
) -> None:
    """Compare a graph with what its spec and formats call for.

    Raises:
        ArtefactError: naming the tensor, node or value that differs.
    """
    _check_initializers(path, scanned, layout)
    _check_operators(path, scanned.model)
    _check_values(path, scanned.model.graph, spec)
    _check_linears(path, scanned.model.graph, spec, formats)
    _check_attention(path, scanned.model.graph, spec)
    _check_convolutions(path, scanned.model.graph, spec)
    _check_matrix_states(path, scanned.model.graph, spec)


def _nodes_by_weight(
    path: Path, model: onnx_model.Model, spec: DecoderSpec
) -> dict[str, onnx_model.Node]:
    """Nodes that multiply by or look up packed codes, by the name of the codes; of several one."""
    result: dict[str, onnx_model.Node] = {}
    left = Counter(f"{op.weight}.qweight" for op in operations(spec) if isinstance(op, Linear))
    for node in model.graph.node:
        index = {"MatMulNBits": 1, "MatMul3Bits": 1, "GatherBlockQuantized": 0}.get(node.op_type)
        if index is None:
            continue
        if len(node.input) < 3:
            raise ArtefactError(f"{path}: node {node.name!r:.80} has unexpected inputs")
        name = node.input[index]
        left[name] -= 1
        if name in result and left[name] < 0:
            raise ArtefactError(f"{path}: node {node.name!r:.80} has unexpected inputs")
        result[name] = node
    return result


def _quantised_format(
    path: Path,
    name: str,
    shape: LinearShape,
    qweight: ExternalTensor,
    scanned: ScannedModel,
    node: onnx_model.Node | None,
) -> TensorFormat:
    zeros = f"{name}.zeros" in scanned.initializers
    offsets = f"{name}.offsets" in scanned.initializers
    supers = f"{name}.super_scales" in scanned.initializers
    table = name + TABLE in scanned.initializers
    high = scanned.initializers.get(f"{name}.qweight_high")
    if offsets or supers or table or (high is not None and _in_whole_groups(high, qweight, shape)):
        sizes = _plane_sizes(path, name, shape, qweight, high)
        return TensorFormat(*sizes, offsets=offsets, supers=supers, table=table)
    if high is not None:
        group_bytes = qweight.shape[-1] if len(qweight.shape) == 3 else 0
        return TensorFormat(3, 4 * group_bytes, zeros)
    expected = "GatherBlockQuantized" if name in EMBEDDINGS else "MatMulNBits"
    if node is None or node.op_type != expected:
        raise ArtefactError(f"{path}: no {expected} node uses {name}.qweight; convert again")
    attributes = _attributes(path, node)
    bits, group_size = attributes.get("bits"), attributes.get("block_size")
    if not isinstance(bits, int) or not isinstance(group_size, int) or bits not in (2, 4, 8):
        raise ArtefactError(
            f"{path}: node {node.name!r:.80} has {bits} bits in blocks of {group_size}"
        )
    return TensorFormat(bits, group_size, zeros)


def _in_whole_groups(high: ExternalTensor, low: ExternalTensor, shape: LinearShape) -> bool:
    """Return whether planes hold 5 or 6 bits, not 3, which are padded to whole groups.

    Of 3 bits as many bytes hold twice as many inputs as of 6, which have more than one group.
    """
    if len(low.shape) != 3 or not high.shape:
        return False
    groups, nbytes = low.shape[1:]
    return 4 * high.shape[-1] == nbytes or (groups > 1 and 2 * groups * nbytes == shape.K)


def _plane_sizes(
    path: Path,
    name: str,
    shape: LinearShape,
    low: ExternalTensor,
    high: ExternalTensor | None,
) -> tuple[int, int]:
    """Bits and group size of a layer that has no padding, from the bytes of its planes."""
    if len(low.shape) != 3 or not 0 < low.shape[1] <= shape.K or shape.K % low.shape[1]:
        raise ArtefactError(f"{path}: {name}.qweight is {list(low.shape)} for {shape.K} inputs")
    group_size = shape.K // low.shape[1]
    nbytes = low.shape[2] + (high.shape[-1] if high is not None and high.shape else 0)
    bits, rest = divmod(8 * nbytes, group_size)
    if rest or not 0 < bits <= 8:
        raise ArtefactError(f"{path}: {name} has {nbytes} bytes a group of {group_size} inputs")
    return bits, group_size


def _attributes(path: Path, node: onnx_model.Node) -> _Attributes:
    values: _Attributes = {}
    for attribute in node.attribute:
        if attribute.name in values or attribute.ref_attr_name:
            raise ArtefactError(
                f"{path}: node {node.name!r:.80} has an odd attribute {attribute.name!r:.80}"
            )
        if attribute.type == onnx_model.ATTRIBUTE_INT:
            values[attribute.name] = attribute.i
        elif attribute.type == onnx_model.ATTRIBUTE_FLOAT:
            values[attribute.name] = attribute.f
    return values


def _check_initializers(path: Path, scanned: ScannedModel, layout: Layout) -> None:
    expected = layout.tensors | layout.aliases
    odd = sorted(set(scanned.initializers) ^ set(expected))
    if odd:
        raise ArtefactError(
            f"{path}: initializer {odd[0]!r:.80} is "
            f"{'missing' if odd[0] in expected else 'not called for by the spec'}; convert again"
        )
    for name, slot in expected.items():
        result = scanned.initializers[name]
        want = (_TYPES[slot.dtype], slot.shape, DATA_FILE, slot.offset)
        if (result.data_type, result.shape, result.location, result.offset) != want:
            raise ArtefactError(
                f"{path}: initializer {name!r} is type {result.data_type}, shape "
                f"{list(result.shape)} at byte {result.offset:,} of {result.location}; the spec "
                f"calls for type {want[0]}, {list(slot.shape)} at {slot.offset:,} of {DATA_FILE}"
            )
    for tensor in scanned.model.graph.initializer:
        if tensor.name in scanned.constants and tensor.ByteSize() > _MAX_CONSTANT_BYTES:
            raise ArtefactError(f"{path}: constant {tensor.name!r:.80} lies inside the graph file")
    if scanned.model.graph.sparse_initializer:
        raise ArtefactError(f"{path}: has sparse initializers, which edgetok never writes")


def _check_operators(path: Path, model: onnx_model.Model) -> None:
    for function in model.functions:
        if (function.domain, function.name) not in _FUNCTIONS:
            raise ArtefactError(f"{path}: has a foreign function {function.name!r:.80}")
        _check_allowed(path, function.node, _FUNCTION_OPERATORS)
    _check_allowed(path, model.graph.node, _OPERATORS)


def _check_allowed(
    path: Path, nodes: Iterable[onnx_model.Node], allowed: Mapping[str, set[str]]
) -> None:
    for node in nodes:
        if node.op_type not in allowed.get(node.domain, ()):
            raise ArtefactError(
                f"{path}: node {node.name!r:.80} is a {node.domain!r:.40} {node.op_type!r:.80}, "
                "which edgetok never writes"
            )


def _check_values(path: Path, graph: onnx_model.Graph, spec: DecoderSpec) -> None:
    """Inputs and outputs: names and the sizes that the spec fixes."""
    inputs: dict[str, tuple[int, ...]] = {"input_ids": (), "attention_mask": (), LOGITS_START: (1,)}
    outputs: dict[str, tuple[int, ...]] = {"logits": (spec.vocab_size,)}
    for state in graph_states(spec):
        inputs[state.past] = outputs[state.present] = state.shape
    if spec.both_sides:
        outputs[VECTORS] = (spec.vector_size,)
    stores = () if spec.both_sides else operations(spec)
    for op in (op for op in stores if isinstance(op, Store)):
        for kind in ("key", "value"):
            cache = (op.heads, cache_head_dim(op.head_dim))
            inputs[f"past_key_values.{op.layer}.{kind}"] = cache
            outputs[f"present.{op.layer}.{kind}"] = cache
    for what, values, expected in (
        ("input", graph.input, inputs),
        ("output", graph.output, outputs),
    ):
        if len(values) != len(expected) or {v.name for v in values} != set(expected):
            raise ArtefactError(
                f"{path}: {len(values)} {what}s, the spec calls for {len(expected)}: "
                f"{', '.join(list(expected)[:3])}, ..."
            )
        for value in values:
            dims = value.type.tensor_type.shape.dim
            fixed = tuple(d.dim_value for d in dims if d.HasField("dim_value"))
            if fixed != expected[value.name]:
                raise ArtefactError(
                    f"{path}: {what} {value.name!r} has fixed sizes {fixed}, the spec calls for "
                    f"{expected[value.name]}"
                )


def _check_linears(
    path: Path, graph: onnx_model.Graph, spec: DecoderSpec, formats: Mapping[str, TensorFormat]
) -> None:
    shapes, owner = linear_shapes(spec), {name: name for name in formats}
    for name, (experts, _) in expert_counts(operations(spec)).items():
        one = LinearShape(shapes[name].N // experts, shapes[name].K)
        for e in range(experts):
            shapes[expert_name(name, e)], owner[expert_name(name, e)] = one, name
    want: _Attributes
    used = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if node.op_type == "GatherBlockQuantized":
            name = node.input[0].removesuffix(".qweight")
            name = "lm_head" if spec.tied and name == "embed_tokens" else name
            if name not in formats:
                raise ArtefactError(f"{path}: node {node.name!r:.80} looks up {name!r:.80}")
            form = formats[name]
            want = {"bits": form.bits, "block_size": form.group_size}
            _compare(path, node, _attributes(path, node), want)
        if node.op_type not in ("MatMulNBits", "MatMul3Bits"):
            continue
        joined = node.input[1].endswith(_JOINED)
        name = node.input[1].removesuffix(_JOINED if joined else ".qweight")
        if name not in shapes or not formats[owner[name]].quantised:
            raise ArtefactError(f"{path}: node {node.name!r:.80} multiplies by {name!r:.80}")
        form, shape = formats[owner[name]], shapes[name]
        want = {"N": shape.N, "K": shape.K, "block_size": form.group_size}
        result = _attributes(path, node)
        if node.op_type == "MatMulNBits":
            want["bits"] = 8 if joined else form.bits
        _compare(path, node, result, want)
    for name, form in formats.items():
        weight = f"{name}.qweight" if form.quantised else f"{name}.weight"
        if not used[weight]:
            raise ArtefactError(f"{path}: no node uses {weight}; convert the model again")


def _check_attention(path: Path, graph: onnx_model.Graph, spec: DecoderSpec) -> None:
    nodes = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    attends = [op for op in operations(spec) if isinstance(op, Attend)]
    if spec.both_sides:
        _check_both_sides(path, graph, len(attends))
        attends = []
    if len(nodes) != len(attends):
        raise ArtefactError(
            f"{path}: {len(nodes)} GroupQueryAttention nodes, the spec has {len(attends)} layers"
        )
    for node, op in zip(nodes, attends, strict=True):
        result: _Attributes = {"local_window_size": -1, "softcap": 0.0, "do_rotary": 0}
        result |= _attributes(path, node)
        want: _Attributes = {
            "num_heads": op.heads,
            "kv_num_heads": op.kv_heads,
            "local_window_size": op.window or -1,
            "softcap": float(np.float32(op.softcap)),
            "scale": float(np.float32(op.scale)),
            "do_rotary": 0,
        }
        _compare(path, node, result, want)
        past = [f"past_key_values.{op.stored_layer}.{kind}" for kind in ("key", "value")]
        outputs = [present_name(op.layer, kind, op.shares) for kind in ("key", "value")]
        if list(node.output[1:]) != outputs or list(node.input[3:5]) != past:
            raise ArtefactError(f"{path}: attention of layer {op.layer} has unexpected outputs")


def _check_both_sides(path: Path, graph: onnx_model.Graph, layers: int) -> None:
    """Attention that is written with plain operators has one softmax in each layer."""
    count = sum(node.op_type == "Softmax" for node in graph.node)
    if count != layers:
        raise ArtefactError(f"{path}: {count} Softmax nodes, the spec has {layers} layers")


def _check_convolutions(path: Path, graph: onnx_model.Graph, spec: DecoderSpec) -> None:
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    convolutions = [op for op in operations(spec) if isinstance(op, Convolution)]
    if len(nodes) != len(convolutions):
        raise ArtefactError(
            f"{path}: {len(nodes)} Conv nodes, the spec has {len(convolutions)} such layers"
        )
    for node, op in zip(nodes, convolutions, strict=True):
        _compare(path, node, _attributes(path, node), {"group": op.size})
        bias = [op.bias] if isinstance(op, CausalConv) and op.bias else []
        if list(node.input[1:]) != [f"{op.weight}.weight", *bias]:
            raise ArtefactError(f"{path}: node {node.name!r:.80} has unexpected weights")


def _check_matrix_states(path: Path, graph: onnx_model.Graph, spec: DecoderSpec) -> None:
    nodes = [node for node in graph.node if node.op_type == "LinearAttention"]
    states = [op for op in operations(spec) if isinstance(op, MatrixState)]
    if len(nodes) != len(states):
        raise ArtefactError(
            f"{path}: {len(nodes)} LinearAttention nodes, the spec has {len(states)} such layers"
        )
    for node, op in zip(nodes, states, strict=True):
        want: _Attributes = {
            "q_num_heads": op.state_shape[0],
            "kv_num_heads": op.state_shape[0],
            "scale": float(np.float32(op.query_scale)),
        }
        _compare(path, node, _attributes(path, node), want)
        if list(node.output[1:]) != [PRESENT_STATE.format(op.layer)]:
            raise ArtefactError(f"{path}: the state of layer {op.layer} has unexpected outputs")


def _compare(path: Path, node: onnx_model.Node, result: _Attributes, want: _Attributes) -> None:
    for key, value in want.items():
        if result.get(key) != value:
            raise ArtefactError(
                f"{path}: node {node.name!r:.80} has {key} {result.get(key)}, the spec calls for "
                f"{value}"
            )
