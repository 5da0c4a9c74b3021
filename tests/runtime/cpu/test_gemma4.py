"""Gemma 4's layers without transformers, which knows the family from version 5 on.

`test_families.py` and its neighbours compare with transformers 5 where that is installed. Here the
CPU backend and onnxruntime are compared with the NumPy decoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetok.cache.limits import CacheLimits
from edgetok.cli.commands.inspect import describe
from edgetok.errors import ArtefactError, CheckpointError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import TensorFormat, linear_shapes
from edgetok.models import DecoderSpec, read_family
from edgetok.models.ops import PER_LAYER_TABLE
from edgetok.models.registry import families
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.gpu.placement import check_layers
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from tests.reference_decoder import forward
from tests.rtn_artefact import (
    Arrays,
    add_constants,
    random_tensors,
    uniform_formats,
    write_artefact,
)
from tests.tiny import sizes

TOKENS = np.random.default_rng(7).integers(3, 307, 40).astype(np.int32)
SAME = {"rtol": 1e-4, "atol": 1e-4}


def config(**changes: Any) -> dict[str, Any]:
    return {**sizes("gemma4_text"), "model_type": "gemma4_text", **changes}


def spec_of(**changes: Any) -> DecoderSpec:
    return read_family(config(**changes)).spec


def weights_of(spec: DecoderSpec) -> Arrays:
    """Random ones, with layers' factors around 1 and short queries: none sees one token alone."""
    weights = random_tensors(spec)
    for name, values in weights.items():
        if name.endswith("layer_scale.weight"):
            values += 1.0
        if name.endswith("q_norm.weight"):
            values *= len(values) ** -0.5
    return weights


# Without a layer's inputs, keys of their own for values, experts' absence: every branch once.
CASES = {
    "all": {},
    "values": {"attention_k_eq_v": False, "num_global_key_value_heads": None},
    "no-sharing": {"num_kv_shared_layers": 0, "use_double_wide_mlp": False},
    "no-inputs": {"hidden_size_per_layer_input": 0, "final_logit_softcapping": None},
    "biases": {"attention_bias": True, "num_kv_shared_layers": 4},
}


@pytest.fixture(scope="module", params=CASES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DecoderSpec, Arrays]:
    spec = spec_of(**CASES[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    formats = uniform_formats(spec, TensorFormat(8, 32, zeros=True))
    weights = write_artefact(folder, spec, weights_of(spec), formats, accuracy_level=0)
    return folder, spec, weights


@pytest.fixture
def backend(made: tuple[Path, DecoderSpec, Arrays], kernel_cache: Path) -> Iterator[CpuBackend]:
    options: dict[str, Any] = {"compute": "float32", "kv_bits": 32, "block_tokens": 16}
    backend = CpuBackend(made[0], threads=2, cache_dir=kernel_cache, **options)
    yield backend
    backend.close()


def test_equals_numpy(made: tuple[Path, DecoderSpec, Arrays], backend: CpuBackend) -> None:
    folder, spec, weights = made
    expected = forward(spec, weights, TOKENS)
    whole = backend.forward(backend.new_cache(40), TOKENS, all_logits=True)
    np.testing.assert_allclose(whole, expected, **SAME)
    cache = backend.new_cache(40)
    for cut in (17, 18, 31, 39):  # a prompt goes on with its last row alone
        found = backend.forward(cache, TOKENS[cache.length_tokens : cut])
        np.testing.assert_allclose(found, expected[cut - 1], **SAME)
    theirs = OnnxRuntimeBackend(folder, threads=1)
    cache = theirs.new_cache(64)
    parts = [theirs.forward(cache, TOKENS[:23], all_logits=True)]
    parts += [theirs.forward(cache, TOKENS[i : i + 1])[None].copy() for i in range(23, 40)]
    theirs.close()
    np.testing.assert_allclose(np.concatenate(parts), expected, **SAME)


def test_caches_hold_what_layers_store(
    made: tuple[Path, DecoderSpec, Arrays], backend: CpuBackend
) -> None:
    """Cut, saved, forked, and measured: layers that share store nothing."""
    _, spec, weights = made
    expected = forward(spec, weights, TOKENS)
    cache = backend.new_cache(40)
    backend.forward(cache, TOKENS[:30])
    assert cache.truncate(23)
    other = backend.new_cache(40)
    other.load(cache.save())
    for each in (cache, other, cache.fork()):
        found = backend.forward(each, TOKENS[23:33])
        np.testing.assert_allclose(found, expected[32], **SAME)
    held = sorted(layer for group in cache.groups for layer in group.layers)
    assert tuple(held) == spec.attention_layers
    assert len(held) == 6 - sum(x.attention.shares >= 0 for x in spec.layers if x.attention)
    row_bytes = {
        layer: memory.row_bytes
        for group, memory in zip(cache.groups, cache.memory.groups, strict=True)
        for layer in group.layers
    }
    # float32 keys and values, dims rounded up to 16
    assert row_bytes == {i: 2 * 4 * (48 if spec.kv_sizes(i)[1] == 40 else 32) for i in held}


@pytest.mark.parametrize("policy", ["retain", "window", "expected-attention"])
def test_a_bounded_cache(policy: str, backend: CpuBackend) -> None:
    """Trained for 64 tokens, given 200: positions are lowered several times."""
    limits = CacheLimits(policy=policy)
    tokens = np.random.default_rng(3).integers(3, 307, 200).astype(np.int32)
    found = []
    for _ in range(2):
        cache = backend.new_bounded_cache(64, limits)
        found.append(backend.forward(cache, tokens, all_logits=True))
        assert cache.position <= 64 < cache.length_tokens
        assert cache.chosen is not None
        assert {layer for layer, _ in cache.chosen.heads} == {
            i for i in backend.spec.attention_layers if not backend.spec.layers[i].window
        }
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)
    full = backend.forward(backend.new_cache(200), tokens[:40], all_logits=True)
    np.testing.assert_allclose(found[0][:40], full, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_rounded_caches(
    bits: int, made: tuple[Path, DecoderSpec, Arrays], kernel_cache: Path, tmp_path: Path
) -> None:
    """With constants of the keys, which layers that share have of the layer that stores."""
    whole, spec, weights = made
    folder = shutil.copytree(whole, tmp_path / "artefact")
    add_constants(folder)
    expected = forward(spec, weights, TOKENS)
    backend = CpuBackend(
        folder, threads=1, cache_dir=kernel_cache, compute="float32", kv_bits=bits, block_tokens=16
    )
    found = backend.forward(backend.new_cache(40), TOKENS, all_logits=True)
    backend.close()
    wrong = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert wrong < {8: 0.03, 5: 0.2, 4: 0.35}[bits]


@pytest.mark.parametrize("bits", [2, 3, 4, 16])
def test_the_table_at_other_bits(bits: int, tmp_path: Path, kernel_cache: Path) -> None:
    spec = spec_of()
    formats = uniform_formats(spec, TensorFormat(16))
    formats[PER_LAYER_TABLE] = TensorFormat(bits, 32, zeros=bits < 16)
    weights = write_artefact(tmp_path, spec, weights_of(spec), formats, accuracy_level=0)
    expected = forward(spec, weights, TOKENS)
    backend = CpuBackend(tmp_path, cache_dir=kernel_cache, compute="float32", kv_bits=32)
    found = backend.forward(backend.new_cache(40), TOKENS, all_logits=True)
    backend.close()
    np.testing.assert_allclose(found, expected, **SAME)
    theirs = OnnxRuntimeBackend(tmp_path, threads=1)
    found = theirs.forward(theirs.new_cache(40), TOKENS, all_logits=True)
    theirs.close()
    np.testing.assert_allclose(found, expected, **SAME)


def test_the_json_has_every_field(made: tuple[Path, DecoderSpec, Arrays]) -> None:
    folder, spec, _ = made
    assert DecoderSpec.from_json(spec.to_json()) == spec
    with open_artefact(folder) as artefact:
        assert artefact.spec == spec
        assert set(describe(artefact)["formats"]) == set(linear_shapes(spec))


def test_what_the_gpu_is_not_given() -> None:
    with pytest.raises(UnsupportedError, match="gpu backend does not compute layers that share"):
        check_layers(spec_of())


def test_the_config_of_earlier_releases_is_the_same() -> None:
    """transformers 5.24 writes an object for each full layer in place of the global sizes."""
    plain = config()
    del plain["global_head_dim"], plain["num_global_key_value_heads"]
    sizes_of_full = {"head_dim": 40, "num_key_value_heads": 1}
    by_layer = {str(i): sizes_of_full for i in (1, 4, 5)}
    assert read_family(plain | {"per_layer_config": by_layer}).spec == spec_of()
    alike = plain | {"attention_k_eq_v": False, "per_layer_config": {}}
    earlier = config() | {"attention_k_eq_v": False, "global_head_dim": plain["head_dim"]}
    assert read_family(alike).spec == read_family(earlier).spec
    more = {"num_hidden_layers": 12, "layer_types": 2 * config()["layer_types"]}
    padded = {f"{i:02}": sizes_of_full for i in (1, 4, 5, 7, 10, 11)}
    assert read_family(plain | more | {"per_layer_config": padded}).spec == spec_of(**more)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"enable_moe_block": True}, CheckpointError, "num_experts is missing"),
        ({"use_bidirectional_attention": "all"}, UnsupportedError, "use_bidirectional_attention"),
        ({"num_kv_shared_layers": 5}, CheckpointError, "leaves no layer that stores keys"),
        ({"num_kv_shared_layers": 7}, CheckpointError, "num_kv_shared_layers is 7"),
        ({"layer_types": 6 * ["sliding_attention"]}, UnsupportedError, "layer_types is"),
        ({"vocab_size_per_layer_input": 300}, UnsupportedError, "vocab_size_per_layer_input"),
        ({"num_global_key_value_heads": 3}, CheckpointError, "not a multiple of the full"),
        ({"per_layer_config": {"1": {"head_dim": 40}}}, UnsupportedError, "per_layer_config is"),
        ({"per_layer_config": {"0": {"head_dim": 40}}}, UnsupportedError, "per_layer_config: 0"),
        ({"per_layer_config": {str(i): {"sliding_window": 4} for i in (1, 4, 5)}},
         UnsupportedError, "per_layer_config: 1: 'sliding_window'"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "default"}}}, CheckpointError,
         "full_attention is missing"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_of(**changes)


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        (3, {"shares": 4}, "expected an earlier one|stores none of"),
        (3, {"shares": 0, "window": 9}, "which stores none of its window"),
        (3, {"shares": 3}, "expected an earlier one|stores none of"),
        (5, {"shares": 4}, "which stores none of"),
        (0, {"kv_heads": 3}, "3 KV heads, expected a divisor"),
        (0, {"kv_heads": 1}, "others with its window"),
        (1, {"head_dim": 20}, "rotates 40 dims of head_dim 20"),
        (1, {"v_norm": False}, "keys_as_values needs v_norm"),
    ],
)
def test_specs_that_no_decoder_has(layer: int, change: dict[str, Any], message: str) -> None:
    fields = json.loads(spec_of().to_json())
    fields["layers"][layer]["mixer"] |= change
    with pytest.raises(ArtefactError, match=message):
        DecoderSpec.from_json(json.dumps(fields))


def test_left_over_projections_are_not_strange() -> None:
    family = read_family(config())
    names = [source.name for source in family.tensors.values()]
    shared = "model.layers.{}.self_attn.{}.weight"
    left_over = [shared.format(i, m) for i in (3, 5) for m in ("k_proj", "v_proj", "k_norm")]
    assert family.unclaimed([*names, *left_over]) == ()
    stored = shared.format(2, "k_proj2")
    assert family.unclaimed([*names, stored]) == (stored,)
    assert "gemma4_text" in families()
