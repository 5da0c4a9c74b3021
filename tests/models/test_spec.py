"""The spec as JSON, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetok.errors import ArtefactError
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec

SPEC = DecoderSpec(
    family="test",
    vocab_size=307,
    hidden_size=72,
    intermediate_size=100,
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    layers=(LayerSpec(), LayerSpec(window=8, rope=1), LayerSpec(rope=-1)),
    ropes=(
        RopeSpec(theta=1e4, rotary_dim=24),
        RopeSpec(
            theta=1e6,
            rotary_dim=4,
            scaling="longrope",
            original_context_tokens=16,
            short_factors=(1.0, 1.5),
            long_factors=(2.0, 3.0),
        ),
    ),
    context_tokens=64,
    norm_eps=1e-5,
    attn_scale=24**-0.5,
    eos_tokens=(2, 3),
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["silu", "head", "longrope", "none"]),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text(max_size=4), child),
    max_leaves=6,
)


def test_round_trip() -> None:
    assert DecoderSpec.from_json(SPEC.to_json()) == SPEC
    assert "\n" not in SPEC.to_json()


def refused(change: dict[str, Any]) -> str:
    fields = json.loads(SPEC.to_json())
    with pytest.raises(ArtefactError) as caught:
        DecoderSpec.from_json(json.dumps(fields | change))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", -1),
        ("hidden_size", 1 << 60),
        ("hidden_size", 72.0),
        ("hidden_size", "72"),
        ("intermediate_size", True),
        ("num_kv_heads", 3),
        ("head_dim", None),
        ("context_tokens", 10**300),
        ("norm_eps", float("nan")),
        ("norm_eps", "1e-5"),
        ("attn_scale", float("inf")),
        ("logit_scale", []),
        ("attn_softcap", -1.0),
        ("logit_softcap", float("nan")),
        ("activation", "relu"),
        ("qk_norm", 1),
        ("tied", 1),
        ("family", ""),
        ("layers", []),
        ("bos_token", 307),
        ("eos_tokens", [-1]),
        ("eos_tokens", ["2"]),
    ],
)
def test_refuses_by_name(key: str, value: object) -> None:
    message = refused({key: value})
    assert key in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"layers": [{"window": -1}]}, "window"),
        ({"layers": [{"rope": 2}]}, "rope 2 of 2"),
        ({"layers": [{"rope": True}]}, "rope"),
        ({"layers": [{"depth": 3}]}, "depth"),
        ({"layers": "ab"}, "spec"),
        ({"ropes": [{"theta": 1e4, "rotary_dim": 26}] * 2}, "rotates 26 dims"),
        ({"ropes": [{"theta": 1e4, "rotary_dim": 3}] * 2}, "even"),
        ({"ropes": [{"theta": 1.0, "rotary_dim": 4}] * 2}, "theta"),
        ({"ropes": [{"theta": 1e4, "rotary_dim": 4, "scaling": "dynamic"}] * 2}, "scaling"),
        ({"ropes": [{"theta": 1e4, "rotary_dim": 4, "scaling": "yarn"}] * 2}, "original"),
        ({"ropes": [{"theta": 1e4, "rotary_dim": 4, "factor": 0}] * 2}, "factor"),
        ({"ropes": [{"theta": 1e4, "rotary_dim": 4, "long_factors": [1.0]}] * 2}, "long_factors"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_refuses_parts(change: dict[str, Any], part: str) -> None:
    assert part in refused(change)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"layers": 3}', "[" * 100_000])
def test_refuses_what_is_no_spec(text: str) -> None:
    with pytest.raises(ArtefactError, match="spec"):
        DecoderSpec.from_json(text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(key=st.sampled_from(sorted(json.loads(SPEC.to_json()))), value=JSON)
def test_any_value_is_read_or_refused(key: str, value: object) -> None:
    fields = json.loads(SPEC.to_json())
    try:
        spec = DecoderSpec.from_json(json.dumps(fields | {key: value}))
    except ArtefactError:
        return
    assert DecoderSpec.from_json(spec.to_json()) == spec
