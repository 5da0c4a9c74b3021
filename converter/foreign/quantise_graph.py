"""Quantise the products of a graph that another exporter wrote.

    MatMul(x, B), B [K, N] a constant      -> MatMulNBits(x)
    MatMul(x, Transpose(W)), W [N, K]      -> MatMulNBits(x)
    Gemm(x, B, c)                          -> MatMulNBits(x) + c
    Gather(E, ids), E a large matrix       -> Cast(Gather(E as float16, ids))

Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetok.converter.card.report import LayerReport
from edgetok.converter.options import ConvertOptions
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.error import relative, squared_errors
from edgetok.converter.quantised import FLOAT16_MAX, fits_float16_scales
from edgetok.converter.write.data_file import TensorFormat
from edgetok.converter.write.pack_codes import pack_linear

_MICROSOFT = "com.microsoft"
_ACCURACY_LEVEL = 4  # int8 activations; without it onnxruntime's 2-bit kernel is 100 times slower


@dataclass(slots=True)
class _Product:
    """A node that multiplies by a constant: `weight` [N, K], from the initializer `name`."""

    node: onnx.NodeProto
    name: str
    weight: npt.NDArray[np.float32]
    bias: str | None


def quantise_graph(
    model: onnx.ModelProto, options: ConvertOptions, vocab_size: int
) -> tuple[tuple[LayerReport, ...], dict[str, str], int, int]:
    """Replace a graph's products by quantised ones, in place.

    Args:
        model: with its weights inside.
        options: bits, group size; a product with `vocab_size` outputs is the head.
        vocab_size: the model's number of logits.

    Returns:
        Layers; reasons why matrices are not quantised; how many weights the graph has; bytes of
        all its weights now.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    parameters = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    nodes: list[onnx.NodeProto] = []
    layers: list[LayerReport] = []
    kept: dict[str, str] = {}
    added: list[onnx.TensorProto] = []
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        product = _product(node, initializers, makers)
        if product is None:
            nodes.append(node)
            continue
        N = product.weight.shape[0]
        bits = options.effective_head_bits if vocab_size == N else options.bits
        greatest = float(np.abs(product.weight).max(initial=0))
        if bits >= 16 or not fits_float16_scales(greatest, bits):
            nodes.append(node)
            why = "16 bits were asked for" if bits >= 16 else f"weights up to {greatest:.4g}"
            kept[product.name] = f"{why}: kept as the exporter wrote it, in float32"
            continue
        replaced, tensors, layer = _quantised(product, bits, options)
        nodes += replaced
        added += tensors
        layers.append(layer)
    del graph.node[:]
    graph.node.extend(nodes)
    # First: the transposition of a tied head reads the embedding although nothing reads it.
    _remove_unused(graph, added)
    _halve_embeddings(graph, kept)
    if not any(opset.domain == _MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    weight_bytes = sum(_nbytes(tensor) for tensor in graph.initializer)
    return tuple(layers), kept, parameters, weight_bytes


def _product(
    node: onnx.NodeProto,
    initializers: dict[str, onnx.TensorProto],
    makers: dict[str, onnx.NodeProto],
) -> _Product | None:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return None
    name, transposed = node.input[1], False
    maker = makers.get(name)
    while maker is not None and maker.op_type == "Identity":
        name, maker = maker.input[0], makers.get(maker.input[0])
    if maker is not None and maker.op_type == "Transpose":
        name, transposed = maker.input[0], True
    tensor = initializers.get(name)
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
        return None
    bias = None
    if node.op_type == "Gemm":
        values = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
        }
        if values.get("alpha", 1) != 1 or values.get("beta", 1) != 1 or values.get("transA", 0):
            return None
        transposed ^= bool(values.get("transB", 0))
        bias = node.input[2] if len(node.input) > 2 else None
    weight = numpy_helper.to_array(tensor)
    return _Product(node, name, np.ascontiguousarray(weight if transposed else weight.T), bias)


def _quantised(
    product: _Product, bits: int, options: ConvertOptions
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], LayerReport]:
    N, K = product.weight.shape
    form = TensorFormat(bits, options.effective_group_size, zeros=not options.symmetric)
    found = rtn.quantise(product.weight, bits, form.group_size, symmetric=options.symmetric)
    parts = pack_linear(found.codes, found.scales, found.zeros, form)
    output = product.node.output[0]
    base = output + ".edgetok"
    tensors = [
        numpy_helper.from_array(np.asarray(values), base + suffix)
        for suffix, values in parts.items()
    ]
    inputs = [product.node.input[0], base + ".qweight", base + ".float_scales"]
    if form.zeros:
        inputs.append(base + ".zeros")
    result = output if product.bias is None else base + ".product"
    nodes = [
        helper.make_node(
            "Cast", [base + ".scales"], [base + ".float_scales"], to=TensorProto.FLOAT
        ),
        helper.make_node(
            "MatMulNBits",
            inputs,
            [result],
            name=product.node.name,
            domain=_MICROSOFT,
            K=K,
            N=N,
            bits=bits,
            block_size=form.group_size,
            accuracy_level=_ACCURACY_LEVEL,
        ),
    ]
    if product.bias is not None:
        nodes.append(helper.make_node("Add", [result, product.bias], [output]))
    error, norm = squared_errors(product.weight, found)
    layer = LayerReport(name=product.name, bits=bits, weight_error=relative(error, norm))
    return nodes, tensors, layer


def _halve_embeddings(graph: onnx.GraphProto, kept: dict[str, str]) -> None:
    """Store matrices that are only gathered from as float16, in place."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    uses = Counter(name for node in nodes for name in node.input)
    del graph.node[:]
    for node in nodes:
        tensor = initializers.get(node.input[0]) if node.op_type == "Gather" else None
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            graph.node.append(node)
            continue
        values = numpy_helper.to_array(tensor)
        if uses[tensor.name] > 1 or float(np.abs(values).max(initial=0)) > FLOAT16_MAX:
            graph.node.append(node)
            kept[tensor.name] = "an embedding of an exported graph: kept as float32"
            continue
        kept[tensor.name] = "an embedding of an exported graph: stored as float16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
        output = node.output[0]
        node.output[0] = output + ".half"
        graph.node.append(node)
        graph.node.append(
            helper.make_node("Cast", [output + ".half"], [output], to=TensorProto.FLOAT)
        )


def _remove_unused(graph: onnx.GraphProto, added: list[onnx.TensorProto]) -> None:
    """Drop nodes and initializers that nothing reads any more; add the new ones."""
    wanted = {value.name for value in graph.output}
    live = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            live.append(node)
            wanted.update(node.input)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    wanted.update(name for inner in attribute.g.node for name in inner.input)
    live.reverse()
    tensors = [tensor for tensor in [*graph.initializer, *added] if tensor.name in wanted]
    del graph.node[:]
    graph.node.extend(live)
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _nbytes(tensor: onnx.TensorProto) -> int:
    itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims)) * itemsize
