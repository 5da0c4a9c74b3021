"""The reader of ONNX files against the onnx package: tables, models and damaged models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto

from edgetok.errors import ArtefactError
from edgetok.formats import onnx_model, protobuf
from edgetok.formats.protobuf import Message, WireError, parse
from edgetok.models.bundled import bundled_model

THEIRS = {
    onnx_model.StringStringEntry: onnx.StringStringEntryProto,
    onnx_model.OperatorSetId: onnx.OperatorSetIdProto,
    onnx_model.Segment: onnx.TensorProto.Segment,
    onnx_model.Tensor: onnx.TensorProto,
    onnx_model.SparseTensor: onnx.SparseTensorProto,
    onnx_model.Dimension: onnx.TensorShapeProto.Dimension,
    onnx_model.Shape: onnx.TensorShapeProto,
    onnx_model.TensorType: onnx.TypeProto.Tensor,
    onnx_model.Type: onnx.TypeProto,
    onnx_model.ValueInfo: onnx.ValueInfoProto,
    onnx_model.Attribute: onnx.AttributeProto,
    onnx_model.Node: onnx.NodeProto,
    onnx_model.Graph: onnx.GraphProto,
    onnx_model.Function: onnx.FunctionProto,
    onnx_model.Model: onnx.ModelProto,
}
KINDS = {
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: "bytes",
}


@pytest.mark.parametrize("kind", THEIRS, ids=lambda kind: kind.__name__)
def test_fields_are_those_of_onnx(kind: type[Message]) -> None:
    descriptor = THEIRS[kind].DESCRIPTOR
    for number, field in kind.fields.items():
        theirs = descriptor.fields_by_number[number]
        assert field.name == theirs.name
        assert field.repeated == theirs.is_repeated
        if field.name == "training_info":
            assert field.kind == "bytes"
        elif isinstance(field.kind, type):
            assert theirs.message_type == THEIRS[field.kind].DESCRIPTOR
        else:
            assert field.kind == KINDS[theirs.type]
            if field.kind == "enum":
                assert set(range(field.greatest + 1)) == set(theirs.enum_type.values_by_number)


def test_numbers_are_those_of_onnx() -> None:
    names = "FLOAT UINT8 INT8 UINT16 INT16 INT32 INT64 BOOL FLOAT16 DOUBLE UINT32 UINT64"
    for name in f"{names} BFLOAT16 UINT4 INT4 EXTERNAL".split():
        assert getattr(onnx_model, name) == getattr(TensorProto, name)
    assert onnx_model.ATTRIBUTE_FLOAT == onnx.AttributeProto.FLOAT
    assert onnx_model.ATTRIBUTE_INT == onnx.AttributeProto.INT


def same(ours: Message, theirs: Any) -> None:
    """Every field of a message, and that they have no other."""
    assert {d.number for d, _ in theirs.ListFields()} <= ours.fields.keys()
    for field in ours.fields.values():
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "training_info":
            continue
        if field.repeated:
            assert len(a) == len(b), field.name
            pairs = list(zip(a, b, strict=True))
        else:
            assert ours.HasField(field.name) == theirs.HasField(field.name), field.name
            pairs = [(a, b)] if ours.HasField(field.name) else []
        for one, other in pairs:
            if isinstance(field.kind, type):
                same(one, other)
            else:
                assert one == other or (one != one and other != other), field.name


def rich() -> bytes:
    """A model with every field that this reader knows."""
    random.seed(3)

    def fill(message: Any, kind: type[Message], depth: int) -> None:
        for field in kind.fields.values():
            if field.name == "training_info" or (isinstance(field.kind, type) and depth > 3):
                continue
            for _ in range(2 if field.repeated else 1):
                if isinstance(field.kind, type):
                    target = getattr(message, field.name)
                    fill(target.add() if field.repeated else target, field.kind, depth + 1)
                    continue
                value: Any = {
                    "int64": random.choice((-1, 0, 1 << 62)), "int32": random.choice((1, 2)),
                    "enum": 1,
                    "uint64": (1 << 64) - 1, "float": 0.5, "double": -0.25, "text": "é",
                    "bytes": b"\0\xff",
                }[field.kind]  # fmt: skip
                if field.repeated:
                    getattr(message, field.name).append(value)
                else:
                    setattr(message, field.name, value)

    model = onnx.ModelProto()
    fill(model, onnx_model.Model, 0)
    return model.SerializeToString()


def models() -> list[bytes]:
    return [(bundled_model() / "model.onnx").read_bytes(), rich()]


@pytest.mark.parametrize("number", range(2))
def test_models_are_read_alike(number: int) -> None:
    data = models()[number]
    theirs = onnx.ModelProto()
    theirs.ParseFromString(data)
    same(parse(onnx_model.Model, data), theirs)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A model with a few bytes changed, added, taken out or doubled."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not changed:
            break
        at, kind = rng.randrange(len(changed)), rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[at : at + rng.randint(1, 8)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 40)]
        else:
            del changed[at:]
            changed += b"\0"
    return bytes(changed)


def test_what_is_accepted_is_read_alike_and_the_rest_is_an_error() -> None:
    """Random damage: never another error, never another meaning than protobuf's."""
    rng = random.Random(1)
    accepted = 0
    whole = onnx.ModelProto.FromString(models()[0])
    sources = [
        *((onnx_model.Node, node.SerializeToString()) for node in whole.graph.node[:40]),
        *((onnx_model.Tensor, t.SerializeToString()) for t in whole.graph.initializer[:40]),
        *((onnx_model.ValueInfo, value.SerializeToString()) for value in whole.graph.input[:8]),
    ]
    for _ in range(6000):
        kind, data = rng.choice(sources)
        data = damaged(data, rng)
        try:
            ours = parse(kind, data)
        except WireError:
            continue
        accepted += 1
        theirs = THEIRS[kind]()
        theirs.ParseFromString(data)
        same(ours, theirs)
    assert accepted > 500


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


NODE = b"\x22\x03Add"  # op_type


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "cut off"),
        (b"\x08\x80\x00", "not as short"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "not as short"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x08\x07\x08\x07", "ir_version occurs twice"),
        (b"\x09" + b"\0" * 8, "wire type 1"),
        (b"\x0b\x0c", "wire type 3"),  # a group
        (varint(99 << 3) + b"\0", "unknown field 99"),
        (b"\x00\x00", "unknown field 0"),
        (b"\x12\x02\xff\xfe", "not UTF-8"),
        (b"\x3a\x05" + NODE, "unknown field|wire type|ends beyond"),
        (b"\x3a\xff\xff\xff\xff\x0f", "ends beyond its message"),
        (b"\x3a\x02\x0a\x05", "ends beyond its message"),
    ],
)
def test_strictness(data: bytes, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        onnx_model.read_model(Path("model.onnx"), data)


def test_depth_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = NODE
    for _ in range(20):  # a graph in an attribute of a node of a graph
        for field in (1, 6, 5):
            nested = varint(field << 3 | 2) + varint(len(nested)) + nested
    nested = varint(1 << 3 | 2) + varint(len(nested)) + nested
    data = varint(7 << 3 | 2) + varint(len(nested)) + nested
    with pytest.raises(ArtefactError, match="nested more than 24 deep"):
        onnx_model.read_model(Path("model.onnx"), data)
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 100)
    packed = varint(1 << 3 | 2) + varint(200) + b"\1" * 200
    with pytest.raises(WireError, match="more than 100 fields"):
        parse(onnx_model.Tensor, packed)
