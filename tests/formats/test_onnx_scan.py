"""Tensors in a hostile graph: bad places, odd keys, sizes that overflow, too many of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgetok.formats.layout import GRAPH_FILE
from edgetok.formats.manifest import write_manifest
from tests.formats.small_artefact import OURS, change, initializer, refused

# Bad locations, each at every place where a tensor can stand.


def external(location: str, *, name: str = "evil") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def as_initializer(model: onnx.ModelProto, location: str) -> None:
    model.graph.initializer.append(external(location))


def as_sparse(model: onnx.ModelProto, location: str) -> None:
    sparse = onnx.SparseTensorProto(dims=[8])
    sparse.values.CopyFrom(external(location))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]))
    model.graph.sparse_initializer.append(sparse)


def as_attribute(model: onnx.ModelProto, location: str) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["evil"], value=external(location)))


def in_subgraph(model: onnx.ModelProto, location: str) -> None:
    branch = helper.make_graph([], "branch", [], [], [external(location)])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["evil"], then_branch=branch, else_branch=branch)
    )


def in_function(model: onnx.ModelProto, location: str) -> None:
    model.functions[0].node.append(
        helper.make_node("Constant", [], ["evil"], value=external(location))
    )


SITES = [as_initializer, as_sparse, as_attribute, in_subgraph, in_function]
LOCATIONS = {
    "parent": "../secret",
    "absolute": "/etc/passwd",
    "subfolder": "sub/secret",
    "backslash": "..\\secret",
    "drive": "C:secret",
    "symlink": "link",
    "folder": "sub",
    "pipe": "pipe",
    "missing": "nothing",
    "empty": "",
    "dots": "..",
    "nul": "model.onnx.data\x00x",
}


@pytest.mark.parametrize("exporter", ["edgetok", "optimum"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("location", LOCATIONS.values(), ids=LOCATIONS)
def test_bad_locations(site: Callable[..., None], location: str, exporter, folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    os.mkfifo(folder / "pipe")
    change(folder, lambda model: site(model, location))
    write_manifest(folder, exporter=exporter, names=OURS)
    refused(folder, "plain file name|symbolic link|regular file|cannot be read")


def test_file_that_the_manifest_does_not_list(folder: Path) -> None:
    (folder / "other").write_bytes(b"0123")
    change(folder, lambda model: as_initializer(model, "other"))
    refused(folder, "other.*not listed")


def set_entry(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = initializer(model, "layers.0.k_proj.scales")
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
                return
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value

    return edit


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("length", str(1 << 60), "shape does not match bytes"),
        ("length", "95", "shape does not match bytes"),
        ("length", "-1", "whole number"),
        ("length", "1e3", "whole number"),
        ("length", "", "whole number"),
        ("length", "٣", "whole number"),
        ("length", "9" * 5000, "whole number"),
        ("offset", str((1 << 63) - 1), "ends at byte"),
        ("offset", str(1 << 64), "whole number|ends at byte"),
        ("offset", "-4096", "whole number"),
        ("offset", "0", "overlap"),
        ("offset", "00", "whole number"),
        ("offset", "4097", "overlap|spec calls for"),
        ("checksum", "x", "sha1"),
        ("basepath", "..", "key 'basepath'"),
        ("exec", "rm", "key 'exec'"),
    ],
)
def test_odd_external_data(key: str, value: str, match: str, folder: Path) -> None:
    change(folder, set_entry(key, value))
    refused(folder, match)


def test_key_that_occurs_twice(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        entry = initializer(model, "final_norm.weight").external_data.add()
        entry.key, entry.value = "offset", "0"

    change(folder, edit)
    refused(folder, "'offset'.*twice")


def test_too_many_tensors(folder: Path) -> None:
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    tiny = TensorProto(data_type=TensorProto.UINT8, dims=[0]).SerializeToString()
    field = bytes([(5 << 3) | 2, len(tiny)]) + tiny  # GraphProto.initializer
    many = field * 1_000_000
    body = graph.graph.SerializeToString() + many
    length = bytearray()
    size = len(body)
    while size:
        length.append((size & 127) | (128 if size > 127 else 0))
        size >>= 7
    graph.ClearField("graph")
    data = graph.SerializeToString() + bytes([(7 << 3) | 2]) + bytes(length) + body
    (folder / GRAPH_FILE).write_bytes(data)
    write_manifest(folder, names=OURS)
    refused(folder, "more than 262,144 fields")


def test_huge_graph(folder: Path) -> None:
    with open(folder / GRAPH_FILE, "r+b") as file:
        file.truncate(100 << 20)
    write_manifest(folder, names=OURS)
    refused(folder, "at most")


def test_deep_subgraphs(folder: Path) -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(28):
        branch = helper.make_node("If", ["c"], ["o"], then_branch=graph)
        graph = helper.make_graph([branch], "g", [], [])

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.extend(graph.node)

    change(folder, edit)
    refused(folder, "not an ONNX model|never writes")
