"""A small artefact of mixed formats, and edits of it such as an attacker would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgetok.errors import ArtefactError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE, TensorFormat
from edgetok.formats.manifest import write_manifest
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from tests.at_once import at_once
from tests.rtn_artefact import uniform_formats

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
    """Opening fails with one clear line, without counting to what it says."""
    with at_once(), pytest.raises(ArtefactError, match=match) as caught:
        open_artefact(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)
