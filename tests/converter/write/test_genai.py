"""`genai_config.json`: fields by hand. Ten families were run with onnxruntime-genai 0.18 itself."""

from __future__ import annotations

import json

from edgetok.converter.write.genai_config import genai_config
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec

SPEC = DecoderSpec(
    family="test",
    vocab_size=61,
    hidden_size=40,
    intermediate_size=52,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    layers=(LayerSpec(),) * 3,
    ropes=(RopeSpec(theta=1e4, rotary_dim=12),),
    context_tokens=131072,
    norm_eps=1e-5,
    attn_scale=0.4,
    bos_token=1,
    eos_tokens=(2, 3),
)


def test_names_sizes_and_tokens() -> None:
    config = json.loads(json.dumps(genai_config(SPEC)))
    model, decoder = config["model"], config["model"]["decoder"]
    assert model["bos_token_id"] == 1
    assert model["eos_token_id"] == [2, 3]
    assert model["context_length"] == 131072
    assert decoder["filename"] == "model.onnx"
    # 12 dims are stored as 16 in the cache.
    assert decoder["head_size"] == 16
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (4, 2)
    assert decoder["inputs"]["past_key_names"] % 2 == "past_key_values.2.key"
    assert decoder["outputs"]["present_value_names"] % 0 == "present.0.value"
    # Its cache is allocated for max_length at once: 131072 tokens would be gigabytes.
    assert config["search"]["max_length"] == 4096
