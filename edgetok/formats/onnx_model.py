"""The messages of an ONNX file, as `protobuf.py` reads them; the onnx package is not needed.

Names and numbers are those of onnx.proto; `tests/formats/test_onnx_model.py` compares them with the
onnx package. Fields that edgetok never writes and nothing here looks at (training, functions of
several devices, sequence and map types) are left out and so refused.

Source: onnx.proto, IR version 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from edgetok.errors import ArtefactError
from edgetok.formats.protobuf import Field, Message, WireError, parse

# TensorProto.DataType
FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = 1, 2, 3, 4, 5, 6, 7
BOOL, FLOAT16, DOUBLE, UINT32, UINT64, BFLOAT16, UINT4, INT4 = 9, 10, 11, 12, 13, 16, 21, 22
EXTERNAL = 1  # TensorProto.DataLocation
ATTRIBUTE_FLOAT, ATTRIBUTE_INT = 1, 2  # AttributeProto.AttributeType


class StringStringEntry(Message):
    """A key and its value."""

    key: str
    value: str
    fields = MappingProxyType({1: Field("key", "text"), 2: Field("value", "text")})


class OperatorSetId(Message):
    """A version of a set of operators."""

    domain: str
    version: int
    fields = MappingProxyType({1: Field("domain", "text"), 2: Field("version", "int64")})


class Segment(Message):
    """A part of a tensor."""

    begin: int
    end: int
    fields = MappingProxyType({1: Field("begin", "int64"), 2: Field("end", "int64")})


class Tensor(Message):
    """A tensor, inside the file or in another."""

    dims: Sequence[int]
    data_type: int
    segment: Segment
    name: str
    raw_data: bytes
    external_data: Sequence[StringStringEntry]
    data_location: int
    fields = MappingProxyType(
        {
            1: Field("dims", "int64", True),
            2: Field("data_type", "int32"),
            3: Field("segment", Segment),
            4: Field("float_data", "float", True),
            5: Field("int32_data", "int32", True),
            6: Field("string_data", "bytes", True),
            7: Field("int64_data", "int64", True),
            8: Field("name", "text"),
            9: Field("raw_data", "bytes"),
            10: Field("double_data", "double", True),
            11: Field("uint64_data", "uint64", True),
            12: Field("doc_string", "text"),
            13: Field("external_data", StringStringEntry, True),
            14: Field("data_location", "enum", greatest=1),
            16: Field("metadata_props", StringStringEntry, True),
        }
    )


class SparseTensor(Message):
    """Values and where they are."""

    values: Tensor
    indices: Tensor
    fields = MappingProxyType(
        {
            1: Field("values", Tensor),
            2: Field("indices", Tensor),
            3: Field("dims", "int64", True),
        }
    )


class Dimension(Message):
    """One size of a shape: a number or a name."""

    dim_value: int
    dim_param: str
    fields = MappingProxyType(
        {
            1: Field("dim_value", "int64"),
            2: Field("dim_param", "text"),
            3: Field("denotation", "text"),
        }
    )


class Shape(Message):
    """The sizes of a tensor."""

    dim: Sequence[Dimension]
    fields = MappingProxyType({1: Field("dim", Dimension, True)})


class TensorType(Message):
    """Type and shape of a value."""

    elem_type: int
    shape: Shape
    fields = MappingProxyType({1: Field("elem_type", "int32"), 2: Field("shape", Shape)})


class Type(Message):
    """The type of a value; only tensors."""

    tensor_type: TensorType
    fields = MappingProxyType({1: Field("tensor_type", TensorType), 6: Field("denotation", "text")})


class ValueInfo(Message):
    """An input, an output or a value between."""

    name: str
    type: Type
    fields = MappingProxyType(
        {
            1: Field("name", "text"),
            2: Field("type", Type),
            3: Field("doc_string", "text"),
            4: Field("metadata_props", StringStringEntry, True),
        }
    )


class Attribute(Message):
    """A named constant of a node."""

    name: str
    f: float
    i: int
    t: Tensor
    g: Graph
    tensors: Sequence[Tensor]
    graphs: Sequence[Graph]
    sparse_tensor: SparseTensor
    sparse_tensors: Sequence[SparseTensor]
    type: int
    ref_attr_name: str


class Node(Message):
    """An operator with its inputs and outputs."""

    input: Sequence[str]
    output: Sequence[str]
    name: str
    op_type: str
    attribute: Sequence[Attribute]
    domain: str
    fields = MappingProxyType(
        {
            1: Field("input", "text", True),
            2: Field("output", "text", True),
            3: Field("name", "text"),
            4: Field("op_type", "text"),
            5: Field("attribute", Attribute, True),
            6: Field("doc_string", "text"),
            7: Field("domain", "text"),
            8: Field("overload", "text"),
            9: Field("metadata_props", StringStringEntry, True),
        }
    )


class Graph(Message):
    """Nodes in the order in which they run."""

    node: Sequence[Node]
    initializer: Sequence[Tensor]
    sparse_initializer: Sequence[SparseTensor]
    input: Sequence[ValueInfo]
    output: Sequence[ValueInfo]
    fields = MappingProxyType(
        {
            1: Field("node", Node, True),
            2: Field("name", "text"),
            5: Field("initializer", Tensor, True),
            10: Field("doc_string", "text"),
            11: Field("input", ValueInfo, True),
            12: Field("output", ValueInfo, True),
            13: Field("value_info", ValueInfo, True),
            15: Field("sparse_initializer", SparseTensor, True),
            16: Field("metadata_props", StringStringEntry, True),
        }
    )


# It holds graphs, which hold nodes, which hold it.
Attribute.fields = MappingProxyType(
    {
        1: Field("name", "text"),
        2: Field("f", "float"),
        3: Field("i", "int64"),
        4: Field("s", "bytes"),
        5: Field("t", Tensor),
        6: Field("g", Graph),
        7: Field("floats", "float", True),
        8: Field("ints", "int64", True),
        9: Field("strings", "bytes", True),
        10: Field("tensors", Tensor, True),
        11: Field("graphs", Graph, True),
        13: Field("doc_string", "text"),
        20: Field("type", "enum", greatest=14),
        21: Field("ref_attr_name", "text"),
        22: Field("sparse_tensor", SparseTensor),
        23: Field("sparse_tensors", SparseTensor, True),
    }
)
Attribute.__init_subclass__()


class Function(Message):
    """A function of the model, which nodes call by its name."""

    name: str
    node: Sequence[Node]
    domain: str
    attribute_proto: Sequence[Attribute]
    fields = MappingProxyType(
        {
            1: Field("name", "text"),
            4: Field("input", "text", True),
            5: Field("output", "text", True),
            6: Field("attribute", "text", True),
            7: Field("node", Node, True),
            8: Field("doc_string", "text"),
            9: Field("opset_import", OperatorSetId, True),
            10: Field("domain", "text"),
            11: Field("attribute_proto", Attribute, True),
            12: Field("value_info", ValueInfo, True),
            13: Field("overload", "text"),
            14: Field("metadata_props", StringStringEntry, True),
        }
    )


class Model(Message):
    """A whole file."""

    graph: Graph
    metadata_props: Sequence[StringStringEntry]
    training_info: Sequence[bytes]
    functions: Sequence[Function]
    fields = MappingProxyType(
        {
            1: Field("ir_version", "int64"),
            2: Field("producer_name", "text"),
            3: Field("producer_version", "text"),
            4: Field("domain", "text"),
            5: Field("model_version", "int64"),
            6: Field("doc_string", "text"),
            7: Field("graph", Graph),
            8: Field("opset_import", OperatorSetId, True),
            14: Field("metadata_props", StringStringEntry, True),
            20: Field("training_info", "bytes", True),  # messages; refused unread
            25: Field("functions", Function, True),
        }
    )


def read_model(path: Path, data: bytes) -> Model:
    """Read an ONNX file.

    Args:
        path: path of the file, for messages.
        data: its bytes.

    Raises:
        ArtefactError: it is not an ONNX model, or has what edgetok never writes.
    """
    try:
        return parse(Model, data)
    except WireError as error:
        raise ArtefactError(f"{path}: not an ONNX model of edgetok: {error}") from error
