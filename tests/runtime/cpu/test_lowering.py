"""Lowering of operations: a kind that is not known, and threads that wait for each other."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from edgetok.converter.write.onnx_graph import build
from edgetok.errors import UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import TensorFormat, linear_shapes, plan
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from edgetok.models.layers.kind import Mixer
from edgetok.models.ops import Op
from edgetok.runtime.cpu.plan import PlanOptions, make_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Riddle(Op):
    """Nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Riddles(Mixer):
    """A mixer of one operation that no backend knows."""

    kind = "riddles"

    def operations(self, place):
        yield Riddle(layer=place.layer)


SPEC = DecoderSpec(
    family="test", vocab_size=64, hidden_size=32, intermediate_size=32, num_heads=2,
    num_kv_heads=1, head_dim=16, layers=(LayerSpec(), LayerSpec(mixer=Riddles())),
    ropes=(RopeSpec(theta=1e4, rotary_dim=16),), context_tokens=32, norm_eps=1e-5,
    attn_scale=0.25,
)  # fmt: skip
FORMATS = {name: TensorFormat(8, 32) for name in linear_shapes(SPEC)}
OPTIONS = PlanOptions(kv_bits=8, compute="int8", block_tokens=8, head_tokens=8)


def test_the_graph_refuses_by_name():
    with pytest.raises(UnsupportedError, match="no Riddle; expected one of Embed, Norm"):
        build(SPEC, plan(SPEC, FORMATS), FORMATS)


def test_the_cpu_refuses_by_name(tiny):
    model = tiny("llama", 8)
    riddle = LayerSpec(mixer=Riddles())
    spec = DecoderSpec(
        **{field: getattr(model.spec, field) for field in DecoderSpec.__slots__}
        | {"layers": (model.spec.layers[0], riddle)}
    )
    with (
        open_artefact(model.artefact) as artefact,
        pytest.raises(UnsupportedError, match="does not compute Riddle; expected one of Embed"),
    ):
        make_plan(spec, artefact, OPTIONS)


def test_the_gpu_refuses_by_name():
    pytest.importorskip("triton")
    from edgetok.runtime.gpu.lowering import lower

    with pytest.raises(UnsupportedError, match="does not compute Riddle: expected one of Embed"):
        lower([Riddle()], target=None)


@pytest.mark.parametrize(
    ("family", "alone"),
    [
        # Heads are normed, kept, turned, rotated for the cache and stored by the thread that has
        # them; rows are added by the thread that normed them. Everything else waits.
        ("qwen3", {("rms_norm", "rms_norm"), ("rms_norm", "keep_queries"),
                   ("keep_queries", "rope"), ("rope", "rope"), ("rope", "hadamard"),
                   ("hadamard", "hadamard"), ("hadamard", "kv_append_8")}),
        ("olmo2", {("rms_norm", "rms_norm"), ("keep_queries", "rope"), ("rope", "rope"),
                   ("rope", "hadamard"), ("hadamard", "hadamard"),
                   ("hadamard", "kv_append_8"), ("rms_norm", "add_scaled")}),
    ],
)  # fmt: skip
def test_where_threads_do_not_wait(family, alone, tiny):
    model = tiny(family, 16)
    with open_artefact(model.artefact) as artefact:
        made = make_plan(model.spec, artefact, OPTIONS)
    rows = [(made.kernels[row[0] & 0xFFFF], bool(row[1])) for row in made.table]
    found = {(name, after) for (name, waits), (after, _) in itertools.pairwise(rows) if not waits}
    products = {pair for pair in found if pair[0].startswith("matmul")}
    assert {first == second for first, second in products} == {True}  # of one group
    gathers = {pair for pair in found if pair[0] == "gather_rows"}
    assert found - products - gathers == alone
