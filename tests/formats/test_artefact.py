"""The artefact reader: what it gives, and that graph, spec and formats must agree."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetok.errors import ArtefactError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE
from edgetok.formats.manifest import MANIFEST_FILE, write_manifest
from tests.formats.small_artefact import FORMATS, OURS, SPEC, change, initializer, node, refused


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
            assert slot.offset + slot.nbytes + 4096 <= len(artefact._mapped())
        assert len(artefact._mapped()) == len(raw)
        assert artefact.weight_bytes == sum(s.nbytes for s in artefact.layout.tensors.values())
        assert artefact.bits_per_weight is not None
        assert 4 < artefact.bits_per_weight < 10
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
