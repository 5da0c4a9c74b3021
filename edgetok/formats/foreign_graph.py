"""Checks of another exporter's graph, so that onnxruntime can run it without harm.

onnxruntime computes constants while it loads a graph, divides integers without a check (0, and the
smallest one by -1, kill the process) and runs loops as long as they say. So operators are those of
decoders, none has a graph in it, no function calls itself, integers are divided by constants other
than 0 and -1 alone, and sizes are not made of huge constants.

Source: ONNX's operators; onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from edgetok.errors import ArtefactError

MAX_SIZE = 1 << 24
MAX_ELEMENTS = 1 << 28

_OPERATORS = frozenset(
    re.findall(
        r"\w+",
        """Abs Add And ArgMax Attention BitShift BitwiseAnd BitwiseOr Cast CastLike Ceil Clip
        Concat Constant ConstantOfShape Cos CumSum DequantizeLinear Div Einsum Elu Equal Erf Exp
        Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual
        HardSigmoid HardSwish Identity IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual
        Log LogSoftmax MatMul Max Min Mish Mod Mul Neg Not OneHot Or Pad Pow RMSNormalization
        Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape
        RotaryEmbedding Round ScatterElements ScatterND Shape Sigmoid Sign
        SimplifiedLayerNormalization Sin Size Slice Softmax Softplus Split Sqrt Squeeze Sub
        Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor""",
    )
)
_MICROSOFT = frozenset(
    re.findall(
        r"\w+",
        """BiasGelu FastGelu GatherBlockQuantized Gelu GroupQueryAttention MatMulNBits
        MultiHeadAttention QuickGelu RotaryEmbedding SimplifiedLayerNormalization
        SkipLayerNormalization SkipSimplifiedLayerNormalization""",
    )
)
_FLOAT_RESULT = frozenset(
    """Attention Cos Einsum Elu Erf Exp Gelu HardSigmoid HardSwish LayerNormalization LeakyRelu Log
    LogSoftmax MatMul Mish RMSNormalization Reciprocal RotaryEmbedding Sigmoid
    SimplifiedLayerNormalization Sin Softmax Softplus Sqrt Swish Tanh""".split()  # noqa: SIM905
)
_SAME_TYPE = frozenset(
    """Abs Add Clip Concat Div Expand Flatten Gather GatherElements GatherND Gemm Identity Max Min
    Mod Mul Neg Pad Pow ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape
    ScatterElements ScatterND Slice Split Squeeze Sub Tile Transpose Trilu Unsqueeze
    CumSum""".split()  # noqa: SIM905
)
_SIZED = frozenset(("Range", "ConstantOfShape", "Expand", "Tile", "Mul", "Add", "Sub", "Pow"))
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def parse(path: Path, data: bytes) -> onnx.ModelProto:
    """Read a graph with the onnx package.

    Raises:
        ArtefactError: it is not an ONNX model.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ArtefactError(f"{path}: not an ONNX model: {error}") from error
    return model


def check_foreign_graph(path: Path, model: onnx.ModelProto) -> None:
    """Refuse a graph that might kill or hang the process.

    Args:
        path: path of the graph, for messages.
        model: as read, its large tensors elsewhere.

    Raises:
        ArtefactError: an operator, or what it is given, has no place in a decoder's graph.
    """
    if model.training_info:
        raise ArtefactError(f"{path}: has training_info, which a decoder does not need")
    accepted: set[tuple[str, str]] = set()
    left = list(model.functions)
    while left:
        # One that calls only those before it does not call itself by any way around.
        ready = [f for f in left if _calls(f, model.functions) <= accepted]
        if not ready:
            raise ArtefactError(f"{path}: function {left[0].name!r:.80} calls itself")
        for function in ready:
            _check_nodes(path, function.node, _Reader(function), accepted)
        accepted |= {(function.domain, function.name) for function in ready}
        left = [function for function in left if function not in ready]
    _check_nodes(path, model.graph.node, _Reader(model.graph), accepted)


def _calls(
    function: onnx.FunctionProto, functions: Iterable[onnx.FunctionProto]
) -> set[tuple[str, str]]:
    known = {(other.domain, other.name) for other in functions}
    return {(node.domain, node.op_type) for node in function.node} & known


def _check_nodes(
    path: Path,
    nodes: Iterable[onnx.NodeProto],
    reader: _Reader,
    functions: set[tuple[str, str]],
) -> None:
    known = {"": _OPERATORS, "ai.onnx": _OPERATORS, "com.microsoft": _MICROSOFT}
    for node in nodes:
        where = f"{path}: node {node.name or node.output[:1]!r:.80} ({node.op_type:.40})"
        if node.op_type not in known.get(node.domain, ()) and (
            (node.domain, node.op_type) not in functions
        ):
            raise ArtefactError(f"{where}: not an operator of a decoder's graph; export it anew")
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise ArtefactError(f"{where}: holds a graph of its own")
        if node.op_type in ("Div", "Mod") and len(node.input) == 2:
            _check_divisor(where, reader, node.input[1])
        if node.op_type in _SIZED:
            _check_sizes(where, node.op_type, reader, node.input)


def _check_divisor(where: str, reader: _Reader, name: str) -> None:
    if reader.is_float(name):
        return
    values = reader.integers(name)
    if values is None:
        raise ArtefactError(f"{where}: divides integers by what is not a constant")
    if np.isin(values, (0, -1)).any():
        raise ArtefactError(f"{where}: divides integers by 0 or -1")


def _check_sizes(where: str, kind: str, reader: _Reader, names: Iterable[str]) -> None:
    for name in names:
        values = reader.integers(name)
        if values is None or values.dtype == np.bool_:
            continue
        numbers = [abs(int(value)) for value in values.ravel()[:1024]]
        large = max(numbers, default=0) > MAX_SIZE
        if large or (kind != "Range" and math.prod(n or 1 for n in numbers) > MAX_ELEMENTS
                     and kind in ("ConstantOfShape", "Expand", "Tile")):  # fmt: skip
            raise ArtefactError(f"{where}: makes a size of {max(numbers):,}")


class _Reader:
    """Types and constants of a graph's or function's values."""

    def __init__(self, graph: onnx.GraphProto | onnx.FunctionProto) -> None:
        self._makers = {output: node for node in graph.node for output in node.output}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._types: dict[str, int] = {}
        if isinstance(graph, onnx.GraphProto):
            self._tensors = {tensor.name: tensor for tensor in graph.initializer}
            self._types = {
                value.name: value.type.tensor_type.elem_type
                for value in (*graph.input, *graph.output, *graph.value_info)
            }

    def _constant(self, name: str) -> onnx.TensorProto | None:
        tensor = self._tensors.get(name)
        node = self._makers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            for attribute in node.attribute:
                if attribute.name == "value_int":
                    tensor = numpy_helper.from_array(np.array(attribute.i))
                elif attribute.name == "value_ints":
                    tensor = numpy_helper.from_array(np.array(attribute.ints, np.int64))
                elif attribute.name in ("value_float", "value_floats"):
                    tensor = numpy_helper.from_array(np.zeros(1, np.float32))
        return tensor

    def integers(self, name: str) -> np.ndarray | None:
        """Values of a constant of integers; None for anything else."""
        tensor = self._constant(name)
        if tensor is None or tensor.data_type in _FLOATS or tensor.external_data:
            return None
        try:
            values: np.ndarray = numpy_helper.to_array(tensor)
        except Exception as error:  # onnx raises whatever NumPy does
            raise ArtefactError(f"tensor {name!r:.80}: cannot be read: {error}") from error
        return values

    def is_float(self, name: str) -> bool:
        """Return whether a value is known to be of floating-point numbers."""
        for _ in range(10_000):
            tensor = self._constant(name)
            if tensor is not None:
                return tensor.data_type in _FLOATS
            node = self._makers.get(name)
            if node is None:
                return self._types.get(name) in _FLOATS
            if node.op_type in ("Cast", "ConstantOfShape"):
                kinds = [a.t.data_type if a.name == "value" else a.i for a in node.attribute]
                return all(kind in _FLOATS for kind in kinds)
            if node.op_type in _FLOAT_RESULT or node.domain == "com.microsoft":
                return True
            if node.op_type == "Where" and len(node.input) == 3:
                name = node.input[1]
            elif node.op_type in _SAME_TYPE and node.input:
                name = node.input[0]
            else:
                return False
        return False
