"""The artefact reader: what it gives, and that it refuses everything else quickly and clearly."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetok.errors import ArtefactError
from edgetok.formats.artefact import open_artefact, verify_manifest
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE, TensorFormat
from edgetok.formats.manifest import MANIFEST_FILE, read_manifest, write_manifest
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact

SPEC = DecoderSpec(
    family="test",
    vocab_size=61,
    hidden_size=40,
    intermediate_size=52,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    layers=(LayerSpec(), LayerSpec(window=6)),
    ropes=(RopeSpec(theta=1e4, rotary_dim=8),),
    context_tokens=64,
    norm_eps=1e-5,
    attn_scale=0.4,
    attn_softcap=3.0,
    tied=True,
    o_bias=True,
)
FORMATS = uniform_formats(SPEC, TensorFormat(4, 16, zeros=True)) | {
    "layers.0.q_proj": TensorFormat(16),
    "layers.0.up_proj": TensorFormat(3, 32),
    "layers.1.o_proj": TensorFormat(32),
    "layers.1.down_proj": TensorFormat(2, 64),
}
OURS = (GRAPH_FILE, DATA_FILE, "tokenizer.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefact") / "original"
    write_artefact(folder, SPEC, random_tensors(SPEC), FORMATS)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "report.json").write_text('{"weight_bytes": 1}')
    write_manifest(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def change(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Edit the graph and make the manifest agree, as an attacker would."""
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    edit(model)
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString())
    write_manifest(folder, names=OURS)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op_type)


def refused(folder: Path, match: str) -> str:
    """Opening fails with one clear line, in under two seconds of processor time."""
    start = time.process_time()
    with pytest.raises(ArtefactError, match=match) as caught:
        open_artefact(folder)
    assert time.process_time() - start < 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gives_what_was_written(original: Path) -> None:
    raw = (original / DATA_FILE).read_bytes()
    with open_artefact(original) as artefact:
        assert artefact.spec == SPEC
        assert artefact.formats == FORMATS
        assert artefact.layout is not None
        for name, slot in (artefact.layout.tensors | artefact.layout.aliases).items():
            tensor = artefact.tensor(name)
            assert tensor.dtype == slot.dtype
            assert tensor.shape == slot.shape
            assert tensor.tobytes() == raw[slot.offset : slot.offset + slot.nbytes]
            assert not tensor.flags.writeable
            assert artefact.address(name) == tensor.ctypes.data
            assert slot.offset + slot.nbytes + 4096 <= artefact.mapped_bytes
        assert artefact.mapped_bytes == len(raw)
        assert artefact.weight_bytes == sum(s.nbytes for s in artefact.layout.tensors.values())
        assert artefact.bits_per_weight is not None
        assert 4 < artefact.bits_per_weight < 10
        assert artefact.tokenizer_path == original / "tokenizer.json"
        assert artefact.template_path is None
        assert artefact.report == {"weight_bytes": 1}
        shape = artefact.shapes["layers.0.o_proj"]
        assert (shape.N, shape.K, shape.bias) == (40, 32, True)
        with pytest.raises(ArtefactError, match="no tensor"):
            artefact.tensor("layers.0.nothing")
    with pytest.raises(ArtefactError, match="closed"):
        artefact.tensor("final_norm.weight")


def test_views_outlive_closing(original: Path) -> None:
    artefact = open_artefact(original)
    weight = artefact.tensor("final_norm.weight")
    expected = weight.copy()
    artefact.close()
    artefact.close()
    np.testing.assert_array_equal(weight, expected)


def test_graph_of_another_exporter(folder: Path) -> None:
    change(folder, lambda model: model.ClearField("metadata_props"))
    refused(folder, "edgetok.format is None")
    write_manifest(folder, exporter="optimum", names=OURS)
    with open_artefact(folder) as artefact:
        assert artefact.spec is None
        assert artefact.formats == {}
        assert artefact.bits_per_weight is None
        assert artefact.weight_bytes == (folder / DATA_FILE).stat().st_size
        with pytest.raises(ArtefactError, match="no tensor"):
            artefact.tensor("final_norm.weight")


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


def set_shape(name: str, *dims: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = initializer(model, name)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return edit


def set_attribute(op_type: str, name: str, value: float) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        attributes = node(model, op_type).attribute
        kept = [a for a in attributes if a.name != name]
        del attributes[:]
        attributes.extend([*kept, helper.make_attribute(name, value)])

    return edit


def edit_spec(**changes: object) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        entry = next(e for e in model.metadata_props if e.key == "edgetok.spec")
        entry.value = json.dumps({**json.loads(entry.value), **changes})

    return edit


def set_metadata(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        next(e for e in model.metadata_props if e.key == key).value = value

    return edit


def repeat_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(initializer(model, "final_norm.weight"))


def drop_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(initializer(model, "layers.1.pre_mlp_norm.weight"))


def add_initializer(model: onnx.ModelProto) -> None:
    extra = model.graph.initializer.add()
    extra.CopyFrom(initializer(model, "final_norm.weight"))
    extra.name = "layers.1.q_norm.weight"


def swap_two(model: onnx.ModelProto) -> None:
    one = initializer(model, "layers.0.input_norm.weight")
    two = initializer(model, "layers.1.input_norm.weight")
    one.name, two.name = two.name, one.name


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="PyOp", domain="ai.onnx.contrib", name="evil")


def foreign_function(model: onnx.ModelProto) -> None:
    function = model.functions.add()
    function.CopyFrom(model.functions[0])
    function.domain, function.name = "com.microsoft", "MatMulNBits"


def inline_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        helper.make_tensor("big", TensorProto.UINT8, [1 << 20], bytes(1 << 20), raw=True)
    )


def lie_inline(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="lie", data_type=TensorProto.FLOAT, raw_data=b"0123456789abcdef")
    tensor.dims.extend([4194305, 4194305, 211106198978564])
    model.graph.initializer.append(tensor)


def segment(model: onnx.ModelProto) -> None:
    initializer(model, "final_norm.weight").segment.begin = 1


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "logit"


def widen_cache(model: onnx.ModelProto) -> None:
    model.graph.input[3].type.tensor_type.shape.dim[1].dim_value = 3


def drop_attention(model: onnx.ModelProto) -> None:
    model.graph.node.remove(node(model, "GroupQueryAttention"))


def drop_linear(model: onnx.ModelProto) -> None:
    nodes = [n for n in model.graph.node if "layers.1.v_proj.qweight" in n.input]
    model.graph.node.remove(nodes[0])


def repeat_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.append(model.metadata_props[0])


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (set_shape("final_norm.weight", 4194305, 4194305, 211106198978564), "does not match bytes"),
        (set_shape("final_norm.weight", -40), "has shape"),
        (set_shape("final_norm.weight", *[1] * 65, 40), "has shape"),
        (set_shape("final_norm.weight", 20, 2), "spec calls for"),
        (set_shape("layers.0.k_proj.qweight", 16, 1, 24), "spec calls for"),
        (lie_inline, "does not match bytes"),
        (repeat_initializer, "two initializers"),
        (add_initializer, "not called for"),
        (drop_initializer, "missing"),
        (swap_two, "spec calls for"),
        (foreign_operator, "never writes"),
        (foreign_function, "foreign function"),
        (inline_weight, "inside the graph file"),
        (segment, "segment"),
        (training, "training_info"),
        (rename_output, "output"),
        (widen_cache, "fixed sizes"),
        (drop_attention, "GroupQueryAttention"),
        (drop_linear, "v_proj"),
        (repeat_metadata, "twice"),
        (set_metadata("edgetok.format", "2"), "edgetok.format"),
        (set_metadata("edgetok.spec", "{"), "JSON"),
        (set_metadata("edgetok.spec", "[" * 100_000), "nested"),
        (set_metadata("edgetok.spec", '{"family":"a","family":"b"}'), "twice"),
        (edit_spec(norm_eps=float("nan")), "NaN"),
        (edit_spec(hidden_size=48), "spec calls for|no linear|K"),
        (edit_spec(hidden_size=1 << 62), "hidden_size"),
        (edit_spec(vocab_size=True), "vocab_size"),
        (edit_spec(tied=False), "embed_tokens"),
        (edit_spec(post_norm=True), "post_attention_norm"),
        (edit_spec(qkv_bias=True), "bias"),
        (edit_spec(attn_scale=0.5), "scale"),
        (edit_spec(attn_softcap=0.0), "softcap"),
        (edit_spec(layers=[{}, {"window": 7}]), "local_window_size"),
        (edit_spec(layers=[{}]), "layers.1|not called for"),
        (edit_spec(extra=1), "extra"),
        (set_attribute("MatMulNBits", "bits", 8), "k_proj|spec calls for"),
        (set_attribute("MatMulNBits", "bits", 5), "5 bits"),
        (set_attribute("MatMulNBits", "block_size", 32), "spec calls for"),
        (set_attribute("MatMulNBits", "block_size", 0), "group_size"),
        (set_attribute("MatMulNBits", "block_size", -16), "group_size"),
        (set_attribute("MatMulNBits", "bits", 4.0), "bits"),
        (set_attribute("MatMulNBits", "K", 39), "K 39"),
        (set_attribute("MatMul3Bits", "block_size", 16), "block_size 16"),
        (set_attribute("GatherBlockQuantized", "bits", 2), "bits"),
        (set_attribute("GroupQueryAttention", "num_heads", 2), "num_heads"),
        (set_attribute("GroupQueryAttention", "do_rotary", 1), "do_rotary"),
    ],
)
def test_graph_and_spec_must_agree(
    edit: Callable[[onnx.ModelProto], None], match: str, folder: Path
) -> None:
    change(folder, edit)
    refused(folder, match)


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
    refused(folder, "initializers, expected at most")


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


# Damaged folders.


def test_truncated_data(folder: Path) -> None:
    os.truncate(folder / DATA_FILE, (folder / DATA_FILE).stat().st_size - 1)
    refused(folder, "manifest says")
    write_manifest(folder, names=OURS)
    refused(folder, "spec and formats need")
    os.truncate(folder / DATA_FILE, 8192)
    write_manifest(folder, names=OURS)
    refused(folder, "ends at byte")


@pytest.mark.parametrize("name", [GRAPH_FILE, "tokenizer.json"])
def test_flipped_byte_in_a_small_file(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, f"hash mismatch: .*{name}")


def test_flipped_byte_in_the_weights(folder: Path) -> None:
    verify_manifest(folder)
    with open(folder / DATA_FILE, "r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    open_artefact(folder).close()
    with pytest.raises(ArtefactError, match=f"hash mismatch: .*{DATA_FILE}"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", OURS)
def test_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("name", OURS)
def test_symbolic_link_instead_of_a_file(name: str, folder: Path) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    refused(folder, f"{name}: not a regular file")


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "not a folder")
    refused(tmp_path, "no manifest.json")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "2"}, "format '2'"),
        ({"format": 1}, "format 1"),
        ({"exporter": "evil"}, "exporter"),
        ({"exporter": ["edgetok"]}, "exporter"),
        ({"files": []}, "files"),
        ({"files": {}}, "model.onnx is not listed"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "plain file name"),
        ({"files": {"x": {"bytes": True, "sha256": "0" * 64}}}, "whole number"),
        ({"files": {"x": {"bytes": -1, "sha256": "0" * 64}}}, "whole number"),
        ({"files": {"x": {"bytes": 1, "sha256": "0" * 63}}}, "sha256"),
        ({"files": {"x": {"bytes": 1}}}, "bytes, sha256"),
        ({"files": {"x": 3}}, "bytes, sha256"),
        ({"files": {str(i): {} for i in range(2000)}}, "at most"),
    ],
)
def test_bad_manifest(changes: dict[str, object], match: str, folder: Path) -> None:
    value = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps({**value, **changes}))
    refused(folder, match)


def test_manifest_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    write_manifest(tmp_path)
    assert json.loads((tmp_path / MANIFEST_FILE).read_text()) == {
        "format": "1",
        "exporter": "edgetok",
        "files": {
            "a.txt": {
                "bytes": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            }
        },
    }
    assert read_manifest(tmp_path) == verify_manifest(tmp_path)


def test_random_damage_never_escapes_as_another_error(folder: Path) -> None:
    """Bytes of the graph and of the manifest changed, cut out and doubled at random."""
    rng = random.Random(0)
    originals = {name: (folder / name).read_bytes() for name in (GRAPH_FILE, MANIFEST_FILE)}
    refusals = 0
    for i in range(240):
        name = MANIFEST_FILE if i % 8 == 0 else GRAPH_FILE
        data = bytearray(originals[name])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 40)]
            else:
                data[at:at] = data[at : at + rng.randint(1, 40)]
        (folder / name).write_bytes(data)
        if name == GRAPH_FILE:
            write_manifest(folder, names=OURS)
        try:
            open_artefact(folder).close()
        except ArtefactError:
            refusals += 1
        (folder / GRAPH_FILE).write_bytes(originals[GRAPH_FILE])
    assert refusals > 120
