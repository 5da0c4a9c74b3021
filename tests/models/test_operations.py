"""The list of operations: complete, in order, and what is derived from it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgetok.errors import ArtefactError
from edgetok.formats.layout import TensorFormat, linear_shapes, plan
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec, tensor_shapes
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.dense import Dense
from edgetok.models.operations import (
    grouped,
    layer_operations,
    makers,
    operations,
    stages,
    value_columns,
)
from edgetok.models.ops import AddScaled, Attend, Linear, Norm, Op, SoftCap, Store

SPEC = DecoderSpec(
    family="test",
    vocab_size=307,
    hidden_size=72,
    intermediate_size=100,
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    layers=(LayerSpec(), LayerSpec(window=8, rope=-1)),
    ropes=(RopeSpec(theta=1e4, rotary_dim=24),),
    context_tokens=64,
    norm_eps=1e-5,
    attn_scale=0.2,
)
VARIANTS = {
    "plain": {},
    "qk_norm": {"qk_norm": "head", "qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "post_norm": {"pre_norm": False, "post_norm": True, "qk_norm": "full"},
    "sandwich": {"post_norm": True, "logit_softcap": 3.0, "tied": True, "residual_scale": 0.5},
}


def variant(name: str) -> DecoderSpec:
    return dataclasses.replace(SPEC, **VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_values_are_written_before_they_are_read(name: str) -> None:
    known: set[str] = set()
    for op in operations(variant(name)):
        assert set(op.reads) <= known, op
        known |= set(op.writes)
    assert "logits" in known


@pytest.mark.parametrize("name", VARIANTS)
def test_a_value_is_as_wide_as_what_reads_it_expects(name: str) -> None:
    spec = variant(name)
    columns: dict[str, int] = {}
    for op in operations(spec):
        if isinstance(op, Linear):
            assert columns[op.source] == op.inputs
        if isinstance(op, AddScaled | Norm):
            assert columns[op.source] == op.size * (getattr(op, "heads", None) or 1)
        columns |= op.writes
    assert columns["logits"] == spec.vocab_size
    assert value_columns(operations(spec)) == columns


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_is_used_once_and_stored_in_order(name: str) -> None:
    """The artefact's order is that of execution; a tied head stands where it is multiplied by."""
    spec = variant(name)
    used = [tensor for op in operations(spec) for tensor in op.tensors]
    assert len(set(used)) == len(used)
    if spec.tied:
        used.remove("embed_tokens.weight")
    layout = plan(spec, dict.fromkeys(linear_shapes(spec), TensorFormat(16)))
    assert list(layout.tensors) == used
    offsets = [slot.offset for slot in layout.tensors.values()]
    assert offsets == sorted(offsets)


def test_one_layer_written_out() -> None:
    """The whole of a plain layer, by hand."""
    result = [
        (type(op).__name__, getattr(op, "weight", "").removeprefix("layers.1."), op.reads)
        for op in layer_operations(variant("qk_norm"), 1)
    ]
    assert result == [
        ("Norm", "input_norm", ("x",)),
        ("Linear", "q_proj", ("h",)),
        ("Linear", "k_proj", ("h",)),
        ("Linear", "v_proj", ("h",)),
        ("Norm", "q_norm", ("q",)),
        ("Norm", "k_norm", ("k",)),
        ("Queries", "", ("q",)),
        ("Store", "", ("k", "v")),
        ("Attend", "", ("q",)),
        ("Linear", "o_proj", ("mixed", "x")),
        ("Norm", "pre_mlp_norm", ("x",)),
        ("Linear", "gate_proj", ("h",)),
        ("Linear", "up_proj", ("h",)),
        ("ActivationMul", "", ("gate", "up")),
        ("Linear", "down_proj", ("gate", "x")),
    ]
    assert tensor_shapes(SPEC)["layers.1.k_proj.weight"] == (48, 72)


def test_numbers_of_the_spec_reach_the_operations() -> None:
    spec = dataclasses.replace(
        SPEC, residual_scale=0.25, logit_scale=0.5, logit_softcap=7.0, attn_softcap=3.0
    )
    ops = operations(spec)
    scales = {op.weight.rpartition(".")[2]: op.scale for op in ops if isinstance(op, Linear)}
    assert scales["o_proj"] == scales["down_proj"] == 0.25
    assert scales["q_proj"] == 1.0
    assert scales["lm_head"] == 0.5
    assert [op.limit for op in ops if isinstance(op, SoftCap)] == [7.0]
    attends = [op for op in ops if isinstance(op, Attend)]
    assert [(op.layer, op.window, op.softcap) for op in attends] == [(0, 0, 3.0), (1, 8, 3.0)]
    assert [op.layer for op in ops if op.STORES] == [0, 1]


def test_layers_of_a_part_keep_their_names() -> None:
    part = dataclasses.replace(SPEC, layers=SPEC.layers[1:])
    result = [op for op in operations(part, 1) if isinstance(op, Linear) and op.layer == 0]
    assert result[0].weight == "layers.1.q_proj"


def test_stages_share_an_input() -> None:
    names = [tuple(op.weight for op in stage) for stage in stages(operations(SPEC))]
    layer = [
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ]
    expected = [tuple(f"layers.{i}.{n}" for n in stage) for i in range(2) for stage in layer]
    assert names == [*expected, ("lm_head",)]


def test_a_group_ends_where_its_input_is_written_again() -> None:
    def linear(source: str, result: str) -> Linear:
        return Linear(weight=result, source=source, result=result, inputs=8, outputs=8)

    ops = [linear("x", "a"), linear("x", "b"), linear("b", "b"), linear("b", "c")]
    assert grouped(ops) == [(ops[0], ops[1]), (ops[2],), (ops[3],)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", ["input_norm", "v_proj", "pre_mlp_norm", "up_proj"]),
        ("post_norm", [None, "v_proj", None, "up_proj"]),
        ("sandwich", ["input_norm", "v_proj", "pre_mlp_norm", "up_proj"]),
    ],
)
def test_what_scales_can_be_folded_into(name: str, expected: list[str | None]) -> None:
    ops = tuple(layer_operations(variant(name), 0))
    result = [makers(ops, stage) for stage in stages(ops)]
    assert [made and made[1].weight.removeprefix("layers.0.") for made in result] == expected


def test_nothing_is_folded_into_what_others_read() -> None:
    ops: list[Op] = list(layer_operations(SPEC, 0))
    stage = stages(ops)[0]
    assert makers(ops, stage) is not None
    at = next(i for i, op in enumerate(ops) if isinstance(op, Store))
    ops.insert(at, AddScaled(value="x", source="h", size=72, scale=1.0))
    assert makers(ops, stage) is None


def test_layers_as_json() -> None:
    """Attention with a dense network is written as it was before there were other kinds."""
    fields = json.loads(SPEC.to_json())
    assert fields["layers"] == [{"window": 0, "rope": 0}, {"window": 8, "rope": -1}]
    fields["layers"][1] = {
        "mixer": {"kind": "attention", "window": 8, "rope": -1},
        "ffn": {"kind": "dense"},
    }
    assert DecoderSpec.from_json(json.dumps(fields)) == SPEC
    assert SPEC.layers[1] == LayerSpec(mixer=Attention(window=8, rope=-1), ffn=Dense())


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ({"mixer": {"kind": "mamba"}}, "mixer 'mamba' is unknown, expected one of attention"),
        ({"mixer": {"kind": "dense"}}, "mixer 'dense' is unknown"),
        ({"ffn": {"kind": "../spec"}}, "is unknown, expected one of altup, dense"),
        ({"mixer": {"window": 3}}, "expected an object with kind"),
        ({"mixer": 3}, "mixer is 3"),
        ({"mixer": {"kind": "attention", "depth": 3}}, "depth"),
        ({"mixer": {"kind": "attention", "rope": 5}}, "layer 0 names rope 5 of 1"),
        ({"mixer": {"kind": "attention"}, "window": 3}, "window and rope are the mixer's"),
    ],
)
def test_refuses_layers_by_name(layer: dict[str, object], part: str) -> None:
    fields = json.loads(SPEC.to_json()) | {"layers": [layer]}
    with pytest.raises(ArtefactError) as caught:
        DecoderSpec.from_json(json.dumps(fields))
    assert part in str(caught.value)
