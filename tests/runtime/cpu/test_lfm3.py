"""LFM3's layers without transformers, which knows the family from version 5 on.

`test_families.py` and its neighbours compare with transformers 5 where that is installed. Here the
CPU backend and onnxruntime are compared with the NumPy decoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetok.errors import ArtefactError, CheckpointError, UnsupportedError
from edgetok.formats.layout import TensorFormat
from edgetok.models import DecoderSpec, read_family
from edgetok.models.operations import kept_at_16_bits, operations
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from tests.reference_decoder import forward
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import sizes

TOKENS = np.random.default_rng(7).integers(3, 307, 60).astype(np.int32)
SAME = {"rtol": 1e-4, "atol": 1e-4}


def spec_of(**changes: Any) -> DecoderSpec:
    return read_family({**sizes("lfm3"), "model_type": "lfm3", **changes}).spec


CASES = {
    "all": {},
    "plain": {"use_attention_gate": False, "use_sandwich_norm": False, "conv_L_cache": 3},
    "biases": {"attention_bias": True, "conv_L_cache": 8, "layer_types": None},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_numpy(case: str, tmp_path: Path, kernel_cache: Path) -> None:
    """Whole, in pieces, cut back to anywhere; another decoder's process is that of onnxruntime."""
    spec = spec_of(**CASES[case])
    formats = uniform_formats(spec, TensorFormat(8, 32, zeros=True))
    formats |= {name: TensorFormat(16) for name in kept_at_16_bits(operations(spec))}
    weights = write_artefact(tmp_path, spec, random_tensors(spec), formats, accuracy_level=0)
    expected = forward(spec, weights, TOKENS)
    backend = CpuBackend(
        tmp_path, threads=2, cache_dir=kernel_cache, compute="float32", kv_bits=32, block_tokens=16
    )
    whole = backend.forward(backend.new_cache(60), TOKENS, all_logits=True)
    np.testing.assert_allclose(whole, expected, **SAME)
    cache = backend.new_cache(60)
    for cut in (17, 18, 19, 31, 59):
        found = backend.forward(cache, TOKENS[cache.length_tokens : cut])
        np.testing.assert_array_equal(found, whole[cut - 1])
    for back in (58, 52, 40, 30):
        assert cache.truncate(cache.reachable(back))
        found = backend.forward(cache, TOKENS[cache.length_tokens : back + 1])
        np.testing.assert_array_equal(found, whole[back])
    backend.close()
    theirs = OnnxRuntimeBackend(tmp_path, threads=1)
    cache = theirs.new_cache(64)
    parts = [theirs.forward(cache, TOKENS[:23], all_logits=True)]
    parts += [theirs.forward(cache, TOKENS[i : i + 1])[None].copy() for i in range(23, 60)]
    theirs.close()
    np.testing.assert_allclose(np.concatenate(parts), expected, **SAME)


def test_the_json_has_every_field() -> None:
    spec = spec_of()
    assert DecoderSpec.from_json(spec.to_json()) == spec
    gates = {f"layers.{i}.attn_gate" for i in (1, 4)}
    assert kept_at_16_bits(operations(spec)) == gates
    assert [layer.window for layer in spec.layers] == [0, 0, 0, 0, 8]
    fields = json.loads(spec.to_json())
    fields["layers"][1]["mixer"]["gated"] = True
    with pytest.raises(ArtefactError, match="one gate at most"):
        DecoderSpec.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"conv_bias": True}, UnsupportedError, "conv_bias is True"),
        ({"conv_L_cache": 9}, CheckpointError, "conv_L_cache is 9"),
        ({"layer_types": 5 * ["mamba"]}, UnsupportedError, "layer_types is"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, CheckpointError,
         "sliding_attention is missing"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec_of(**changes)
