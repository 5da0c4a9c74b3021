"""The exported graph, run by plain onnxruntime, against transformers and the NumPy decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgetok.converter.write.data_file import TensorFormat, plan
from edgetok.converter.write.onnx_graph import build
from edgetok.errors import UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.layout import GRAPH_FILE
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec, read_family
from edgetok.models.operations import expert_counts, operations
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from tests.reference_decoder import canonical_weights, forward
from tests.rtn_artefact import Arrays, random_tensors, uniform_formats, write_artefact
from tests.tiny import FAMILIES, load_reference, tiny_checkpoint

# Longer than every window (8) and than the longrope's trained length (16).
TOKENS = np.random.default_rng(5).integers(0, 307, 37).astype(np.int32)
# float32 throughout against float64: a few hundred roundings of 6e-8 on logits of up to about 20.
FLOAT32 = {"rtol": 1e-4, "atol": 2e-4}


def spec_of(**changes: object) -> DecoderSpec:
    """A decoder of sizes that divide nothing, for what no family has."""
    fields: dict[str, object] = {
        "family": "test",
        "vocab_size": 61,
        "hidden_size": 40,
        "intermediate_size": 52,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "layers": (LayerSpec(), LayerSpec(window=5)),
        "ropes": (RopeSpec(theta=1e4, rotary_dim=8),),
        "context_tokens": 64,
        "norm_eps": 1e-5,
        "attn_scale": 0.4,
    }
    return DecoderSpec(**{**fields, **changes})  # type: ignore[arg-type]


def logits_of(folder: Path, tokens: np.ndarray = TOKENS, capacity: int | None = None) -> np.ndarray:
    backend = OnnxRuntimeBackend(folder, threads=1)
    cache = backend.new_cache(capacity or len(tokens))
    logits = backend.forward(cache, tokens, all_logits=True).copy()
    backend.close()
    return logits


def tiny_weights(family: str, folder: Path) -> tuple[DecoderSpec, Arrays]:
    checkpoint = open_checkpoint(tiny_checkpoint(family, folder))
    read = read_family(checkpoint.config, checkpoint.generation_config)
    return read.spec, canonical_weights(read, checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_16_bits_equal_transformers(family: str, tmp_path: Path) -> None:
    spec, weights = tiny_weights(family, tmp_path / "hf")
    write_artefact(tmp_path / "out", spec, weights, uniform_formats(spec, TensorFormat(16)))
    with torch.no_grad():
        model = load_reference(tmp_path / "hf")
        expected = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "out"), expected, **FLOAT32)


@pytest.mark.parametrize("family", FAMILIES)
def test_8_bits_equal_the_dequantised_decoder(family: str, tmp_path: Path) -> None:
    spec, weights = tiny_weights(family, tmp_path / "hf")
    formats = uniform_formats(spec, TensorFormat(8, 32))
    stands_for = write_artefact(tmp_path / "exact", spec, weights, formats, accuracy_level=0)
    expected = forward(spec, stands_for, TOKENS)
    np.testing.assert_allclose(logits_of(tmp_path / "exact"), expected, **FLOAT32)
    # The same with int8 activations, as it is shipped. Each of some 25 products in a row adds
    # about half a percent of its own.
    write_artefact(tmp_path / "shipped", spec, weights, formats)
    size = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(logits_of(tmp_path / "shipped") - expected, axis=1) / size
    # A router that is nearly undecided may choose other experts, and later tokens see those.
    assert (
        np.median(error) if expert_counts(operations(spec)) else np.sqrt(np.mean(error**2))
    ) < 0.05


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("group_size", [16, 32, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_format(bits: int, group_size: int, zeros: bool, tied: bool, tmp_path: Path) -> None:
    spec = spec_of(tied=tied)
    formats = uniform_formats(spec, TensorFormat(bits, group_size, zeros))
    stands_for = write_artefact(tmp_path, spec, random_tensors(spec), formats, accuracy_level=0)
    onnx.checker.check_model(str(tmp_path / GRAPH_FILE), full_check=False)
    tokens = TOKENS[:12] % spec.vocab_size
    expected = forward(spec, stands_for, tokens)
    np.testing.assert_allclose(logits_of(tmp_path, tokens), expected, **FLOAT32)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "form",
    [TensorFormat(4, 32, table=True), TensorFormat(5, 32), TensorFormat(6, 32)],
    ids=["table", "5 bits", "6 bits"],
)
def test_planes_and_tables(form: TensorFormat, tied: bool, tmp_path: Path) -> None:
    spec = spec_of(tied=tied, hidden_size=96, intermediate_size=160, num_heads=8)
    formats = uniform_formats(spec, form)
    stands_for = write_artefact(tmp_path, spec, random_tensors(spec), formats, accuracy_level=0)
    onnx.checker.check_model(str(tmp_path / GRAPH_FILE), full_check=False)
    tokens = TOKENS[:12] % spec.vocab_size
    expected = forward(spec, stands_for, tokens)
    np.testing.assert_allclose(logits_of(tmp_path, tokens), expected, **FLOAT32)


def test_3_bits_in_a_half_filled_group_are_not_taken_for_6(tmp_path: Path) -> None:
    """A row of 32 inputs in a group of 64 has as many bytes in either plane."""
    spec = spec_of(hidden_size=32, intermediate_size=64, num_heads=4)
    formats = uniform_formats(spec, TensorFormat(3, 64))
    write_artefact(tmp_path, spec, random_tensors(spec), formats)
    with open_artefact(tmp_path) as artefact:
        assert artefact.formats == formats


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_mixed_formats(tied: bool, tmp_path: Path) -> None:
    spec = spec_of(tied=tied, qkv_bias=True, o_bias=True, mlp_bias=True)
    kinds = [TensorFormat(b, g, z) for b, g, z in ((2, 16, True), (3, 64, False), (4, 32, True))]
    kinds += [TensorFormat(8, 128), TensorFormat(16), TensorFormat(32)]
    names = uniform_formats(spec, kinds[0])
    formats = {name: kinds[i % len(kinds)] for i, name in enumerate(names)}
    stands_for = write_artefact(tmp_path, spec, random_tensors(spec), formats, accuracy_level=0)
    onnx.checker.check_model(str(tmp_path / GRAPH_FILE))
    tokens = TOKENS[:9] % spec.vocab_size
    expected = forward(spec, stands_for, tokens)
    np.testing.assert_allclose(logits_of(tmp_path, tokens), expected, **FLOAT32)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 10, "ropes": (RopeSpec(theta=1e4, rotary_dim=6),)},
        {"head_dim": 12, "qk_norm": "full", "ropes": (RopeSpec(theta=50.0, rotary_dim=12),)},
        {"qk_norm": "head", "post_norm": True, "activation": "gelu"},
        {"pre_norm": False, "post_norm": True, "activation": "gelu_tanh"},
        {"attn_softcap": 0.7, "logit_softcap": 1.5, "logit_scale": 0.3},
        {"embed_scale": 3.0, "residual_scale": 0.3, "num_kv_heads": 6},
        {"layers": (LayerSpec(window=1), LayerSpec(window=3, rope=-1)), "num_kv_heads": 1},
        {
            "layers": (LayerSpec(rope=1), LayerSpec(rope=0)),
            "ropes": (
                RopeSpec(theta=1e4, rotary_dim=8, attention_factor=1.3),
                RopeSpec(theta=100.0, rotary_dim=4, scaling="linear", factor=2.0),
            ),
        },
    ],
    ids=lambda changes: "+".join(changes),
)
def test_every_field_of_the_spec(changes: dict[str, object], tmp_path: Path) -> None:
    spec = spec_of(**changes)
    weights = random_tensors(spec)
    write_artefact(tmp_path, spec, weights, uniform_formats(spec, TensorFormat(32)))
    onnx.checker.check_model(str(tmp_path / GRAPH_FILE))
    tokens = TOKENS[:17] % spec.vocab_size
    expected = forward(spec, weights, tokens)
    np.testing.assert_allclose(logits_of(tmp_path, tokens), expected, **FLOAT32)


def test_longrope_goes_by_the_longest_possible_conversation(tmp_path: Path) -> None:
    spec, weights = tiny_weights("phi3", tmp_path / "hf")
    stands_for = write_artefact(
        tmp_path / "out", spec, weights, uniform_formats(spec, TensorFormat(32))
    )
    tokens = TOKENS[:10]
    for capacity in (10, 16, 17, 64):
        expected = forward(spec, stands_for, tokens, capacity_tokens=capacity)
        result = logits_of(tmp_path / "out", tokens, capacity)
        np.testing.assert_allclose(result, expected, **FLOAT32)
    short = forward(spec, stands_for, tokens, capacity_tokens=16)
    assert np.abs(short - forward(spec, stands_for, tokens, capacity_tokens=17)).max() > 0.01


def test_batch_padded_on_the_right(tmp_path: Path) -> None:
    import onnxruntime as ort

    spec = spec_of()
    weights = random_tensors(spec)
    write_artefact(tmp_path, spec, weights, uniform_formats(spec, TensorFormat(32)))
    session = ort.InferenceSession(str(tmp_path / GRAPH_FILE))
    rows = [TOKENS[:9] % spec.vocab_size, TOKENS[9:14] % spec.vocab_size]
    ids = np.zeros((2, 9), np.int64)
    mask = np.zeros((2, 9), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    past = {
        f"past_key_values.{i}.{kind}": np.zeros((2, spec.num_kv_heads, 0, spec.head_dim), "f4")
        for i in range(spec.num_layers)
        for kind in ("key", "value")
    }
    logits = session.run(["logits"], {"input_ids": ids, "attention_mask": mask, **past})[0]
    for i, row in enumerate(rows):
        np.testing.assert_allclose(logits[i, : len(row)], forward(spec, weights, row), **FLOAT32)


def test_building_is_deterministic_and_small() -> None:
    spec = spec_of(tied=True)
    formats = uniform_formats(spec, TensorFormat(3))
    layout = plan(spec, formats)
    first = build(spec, layout, formats).SerializeToString()
    assert first == build(spec, layout, formats).SerializeToString()
    assert len(first) < 100_000


def test_attention_scale_that_onnxruntime_would_replace() -> None:
    spec = dataclasses.replace(spec_of(), attn_scale=0.0)
    formats = uniform_formats(spec, TensorFormat(16))
    with pytest.raises(UnsupportedError, match="attn_scale"):
        build(spec, plan(spec, formats), formats)
