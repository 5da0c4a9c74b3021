"""Each family file against transformers, on tiny random checkpoints and on real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.formats.checkpoint import open_checkpoint
from edgetok.models import Family, inv_freq, read_family, tensor_shapes
from edgetok.models.registry import families
from tests.models.rope_styles import as_transformers_4, as_transformers_5
from tests.reference_decoder import canonical_weights, forward
from tests.tiny import (
    ALL_FAMILIES,
    FAMILIES,
    NEWER_ROPES,
    load_reference,
    model_type,
    tiny_checkpoint,
)

TOKENS = np.random.default_rng(7).integers(4, 105, 40)


def assert_equals_transformers(folder: Path, tokens: np.ndarray = TOKENS) -> None:
    checkpoint = open_checkpoint(folder)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    assert tuple(family.tensors) == tuple(tensor_shapes(family.spec))
    assert family.unclaimed(checkpoint.names) == ()
    weights = canonical_weights(family, checkpoint)
    assert {n: w.shape for n, w in weights.items()} == tensor_shapes(family.spec)
    result = forward(family.spec, weights, tokens)
    with torch.no_grad():
        # transformers 5 cannot ask a cache of only states for its length.
        output = load_reference(folder)(torch.from_numpy(tokens)[None], use_cache=False)
    expected = output.logits[0].numpy()
    # float32 against float64: a few hundred roundings of 6e-8, on logits of up to about 20.
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-4)


def assert_computes(folder: Path, expected: np.ndarray) -> None:
    """The checkpoint's logits of `TOKENS`, by the slow decoder, are those."""
    checkpoint = open_checkpoint(folder)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    assert family.unclaimed(checkpoint.names) == ()
    result = forward(family.spec, canonical_weights(family, checkpoint), TOKENS)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-4)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_every_family_has_a_tiny_checkpoint() -> None:
    assert families() == tuple(sorted({model_type(family) for family in ALL_FAMILIES}))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, tmp_path: Path) -> None:
    assert_equals_transformers(tiny_checkpoint(family, tmp_path, shards=2))


def test_qwen3_5_is_qwen3_next_without_experts(tmp_path: Path) -> None:
    """transformers 4 does not know it; its layers differ in the order of projections' rows."""
    folder = tiny_checkpoint("qwen3_next", tmp_path, mlp_only_layers=[0, 1, 2])
    with torch.no_grad():
        expected = load_reference(folder)(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    config, weights = read_config(folder), load_file(folder / "model.safetensors")
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    dim, width = config["linear_key_head_dim"], config["linear_value_head_dim"]
    shared, hidden = values // keys, config["hidden_size"]
    for i in (0, 2):
        place = f"model.layers.{i}.linear_attn.in_proj_"
        by_head = weights.pop(f"{place}qkvz.weight").view(keys, -1, hidden)
        q, k, v, z = by_head.split([dim, dim, shared * width, shared * width], 1)
        qkv = [x.reshape(-1, hidden) for x in (q, k, v)]
        weights[f"{place}qkv.weight"] = torch.cat(qkv)
        weights[f"{place}z.weight"] = z.reshape(-1, hidden).clone()
        b, a = weights.pop(f"{place}ba.weight").view(keys, 2, shared, hidden).unbind(1)
        weights[f"{place}b.weight"] = b.reshape(-1, hidden).clone()
        weights[f"{place}a.weight"] = a.reshape(-1, hidden).clone()
    weights["mtp.norm.weight"] = torch.ones(3)  # of layers that guess further tokens
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    experts = [key for key in config if "expert" in key or "sparse" in key or "router" in key]
    for key in (*experts, "moe_intermediate_size", "norm_topk_prob", "mlp_only_layers"):
        del config[key]
    config |= {"model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"]}
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 2, 2]}
    rope["partial_rotary_factor"] = config.pop("partial_rotary_factor", 0.5)
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        config.pop(key, None)
    config |= {"rope_parameters": {"rope_theta": 1e4, **rope}, "attn_output_gate": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert_computes(folder, expected)


def test_lfm2_moe_with_equal_experts_is_lfm2(tmp_path: Path) -> None:
    """transformers 4 does not know it; published checkpoints have a tensor for each matrix."""
    folder = tiny_checkpoint("lfm2", tmp_path)
    with torch.no_grad():
        expected = load_reference(folder)(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    config, weights = read_config(folder), load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    for i in (2, 3):
        place = f"model.layers.{i}.feed_forward."
        for name in ("w1", "w2", "w3"):
            dense = weights.pop(f"{place}{name}.weight")
            for e in range(5):
                weights[f"{place}experts.{e}.{name}.weight"] = dense.clone()
        weights[f"{place}gate.weight"] = torch.randn(5, config["hidden_size"], generator=random)
        weights[f"{place}expert_bias"] = torch.randn(5, generator=random)
    width = len(weights["model.layers.0.feed_forward.w1.weight"])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {key: value for key, value in config.items() if not key.startswith("block_")}
    config |= {"model_type": "lfm2_moe", "architectures": ["Lfm2MoeForCausalLM"]}
    config |= {"num_experts": 5, "num_experts_per_tok": 3, "num_dense_layers": 2}
    config |= {"intermediate_size": width, "moe_intermediate_size": width}
    (folder / "config.json").write_text(json.dumps(config))
    assert_computes(folder, expected)


def test_lfm3_without_gates_is_lfm2(tmp_path: Path) -> None:
    """transformers 4 does not know it; LFM2 may have seven taps, too."""
    folder = tiny_checkpoint("lfm2", tmp_path, conv_L_cache=7)
    with torch.no_grad():
        expected = load_reference(folder)(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    config, weights = read_config(folder), load_file(folder / "model.safetensors")
    for old, new in (("q_layernorm", "q_norm"), ("k_layernorm", "k_norm"), ("out_proj", "o_proj")):
        old, new = (f"self_attn.{name}" for name in (old, new))
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    inner = len(weights["model.layers.0.feed_forward.w1.weight"])
    rope = {"rope_type": "default", "rope_theta": as_transformers_4(config)["rope_theta"]}
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "full_attn_idxs"):
        config.pop(key, None)
    config = {key: value for key, value in config.items() if not key.startswith("block_")}
    config |= {"model_type": "lfm3", "architectures": ["Lfm3ForCausalLM"]}
    config |= {"intermediate_size": inner, "rope_parameters": {"full_attention": rope}}
    config |= {"use_sandwich_norm": False, "use_attention_gate": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert_computes(folder, expected)


def test_ministral3_without_growth_is_mistral(tmp_path: Path) -> None:
    """transformers 4 does not know it."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    folder = tiny_checkpoint("mistral", tmp_path, rope_scaling=rope, sliding_window=None)
    config = as_transformers_5(read_config(folder))
    config |= {"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"]}
    with torch.no_grad():
        expected = load_reference(folder)(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    weights = canonical_weights(_ministral3(config, growth=0.0), open_checkpoint(folder))
    result = forward(_ministral3(config, growth=0.0).spec, weights, TOKENS)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-4)
    # The factor of a token's queries, which scores take on: it first grows at token 16.
    spec = _ministral3(config, growth=0.5).spec
    grown = forward(spec, weights, TOKENS)
    np.testing.assert_array_equal(grown[:16], result[:16])
    assert np.abs(grown[16:] - result[16:]).max() > 0.01


def _ministral3(config: dict[str, Any], *, growth: float) -> Family:
    rope = config["rope_parameters"] | {"llama_4_scaling_beta": growth}
    return read_family(config | {"rope_parameters": rope})


@pytest.mark.parametrize("name", ["stories260k", "babyllama-105"])
def test_real_weights_equal_transformers(name: str, data: Path) -> None:
    assert_equals_transformers(data / "models" / name)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 2.0},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "mscale": 0.7,
            "mscale_all_dim": 0.9,
        },
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 64,
            "short_factor": [1.0 + i / 8 for i in range(12)],
            "long_factor": [2.0] * 12,
            "factor": 1.0,
        },
    ],
    ids=["none", "linear", "yarn", "yarn-default", "yarn-mscale", "yarn-factor", "longrope"],
)
def test_rope_scaling_equals_transformers(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    assert_equals_transformers(tiny_checkpoint("llama", tmp_path, rope_scaling=scaling))


@pytest.mark.parametrize("tokens", [16, 17])
def test_longrope_changes_factors_past_the_trained_length(tokens: int, tmp_path: Path) -> None:
    folder = tiny_checkpoint("phi3", tmp_path)
    assert_equals_transformers(folder, TOKENS[:tokens])
    rope = read_family(read_config(folder)).spec.ropes[0]
    short, long = inv_freq(rope, 16), inv_freq(rope, 17)
    assert np.all(long < short)
    np.testing.assert_allclose(short * rope.short_factors, long * rope.long_factors)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"num_key_value_heads": None, "head_dim": 18, "hidden_act": "gelu"}),
        ("llama", {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False}),
        ("qwen3", {"attention_bias": True, "use_sliding_window": True, "sliding_window": 8,
                   "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {"rope_scaling": None, "final_logit_softcapping": 4.0}),
        ("phi3", {"rope_scaling": None, "partial_rotary_factor": 1.0, "sliding_window": 9}),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "mlp_bias": True}),
        ("granite", {"mlp_bias": True, "attention_bias": False}),
        ("olmo2", {"attention_bias": True}),
        ("olmo3", {"attention_bias": True, "rope_scaling": None}),
        ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
        ("exaone4", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
        ("ministral", {"layer_types": None}),
        ("seed_oss", {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False}),
        ("gemma", {"hidden_act": "gelu", "attention_bias": False}),
        ("qwen3_next", {"attention_bias": False, "layer_types": None, "num_hidden_layers": 4,
                        "linear_num_value_heads": 2, "linear_conv_kernel_dim": 2}),
        ("granitemoehybrid", {"num_local_experts": 0, "mamba_proj_bias": True, "mamba_d_conv": 3,
                              "mamba_conv_bias": False, "attention_bias": False}),
        ("granitemoehybrid", {"layer_types": ["attention"] * 4, "num_local_experts": 0,
                              "position_embedding_type": "rope", "tie_word_embeddings": False,
                              "hidden_act": "gelu"}),
        ("granitemoehybrid", {"layer_types": ["attention"] + ["mamba"] * 3, "mamba_d_head": 24}),
        ("hunyuan_v1_dense", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                               "original_max_position_embeddings": 16}}),
        ("vaultgemma", {"attn_logit_softcapping": None, "attention_bias": True}),
        ("ministral3", {"sliding_window": 8}),
        ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False}),
        ("lfm3", {"use_sandwich_norm": False, "attention_bias": True, "conv_L_cache": 4}),
        ("lfm3", {"use_attention_gate": False, "layer_types": None, "conv_L_cache": 8}),
    ],
)  # fmt: skip
def test_options_equal_transformers(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    assert_equals_transformers(tiny_checkpoint(family, tmp_path, **config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embedding_scale_is_rounded_as_transformers_rounds_it(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = tiny_checkpoint("gemma2", tmp_path, dtype=dtype)
    expected = torch.tensor(72**0.5, dtype=dtype).item()
    assert read_family(read_config(folder)).spec.embed_scale == expected


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b"])
def test_published_shapes(name: str, data: Path) -> None:
    config = json.loads((data / "shapes" / f"{name}.config.json").read_text())
    spec = read_family(config).spec
    result = (spec.hidden_size, spec.num_layers, spec.head_dim, spec.qkv_bias, spec.qk_norm)
    assert (
        result
        == {
            "llama-3.2-1b": (2048, 16, 64, False, "none"),
            "qwen2.5-0.5b": (896, 24, 64, True, "none"),
            "qwen3-0.6b": (1024, 28, 128, False, "head"),
        }[name]
    )
    assert all(layer.window == 0 for layer in spec.layers)
    parameters = sum(int(np.prod(shape)) for shape in tensor_shapes(spec).values())
    assert (
        parameters
        == {
            "llama-3.2-1b": 1_235_814_400,
            "qwen2.5-0.5b": 494_032_768,
            "qwen3-0.6b": 596_049_920,
        }[name]
    )


# Only transformers 5 has written configs of the others.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NEWER_ROPES])
def test_both_styles_of_rope_config(family: str, tmp_path: Path) -> None:
    config = read_config(tiny_checkpoint(family, tmp_path))
    old, new = as_transformers_4(config), as_transformers_5(config)
    assert ("rope_theta" in old, "rope_theta" in new) == (True, False)
    assert read_family(old) == read_family(new) == read_family(config)


_NO_WINDOW = {"sliding_window": None, "layer_types": ["full_attention"] * 4}


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("exaone4", _NO_WINDOW, _NO_WINDOW | {"sliding_window_pattern": 0}),
        (
            "granitemoehybrid",
            {"layer_types": ["mamba", "attention"] * 2, "time_step_limit": None},
            {
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "time_step_limit": [0.0, {"__float__": "Infinity"}],
            },
        ),
        (
            "olmo3",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4}},
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                    # Of an object for both; nothing reads them.
                    "rope_type": "default",
                    "rope_theta": 5e5,
                },
            },
        ),
        (
            "qwen3_moe",
            {"num_experts": 6, "num_local_experts": None},
            {"num_experts": None, "num_local_experts": 6},
        ),
    ],
)
def test_keys_that_transformers_5_saves(
    family: str, old: dict[str, Any], new: dict[str, Any], tmp_path: Path
) -> None:
    config = read_config(tiny_checkpoint(family, tmp_path))
    if "rope_parameters" in old:
        config |= {"rope_theta": None, "rope_scaling": None}
    if family == "exaone4":
        config["sliding_window_pattern"] = None
    assert read_family(config | new) == read_family(config | old)


def test_generation_config_names_the_ends_of_an_answer(tmp_path: Path) -> None:
    config = read_config(tiny_checkpoint("llama", tmp_path))
    assert read_family(config).spec.eos_tokens == (2,)
    assert read_family(config, {"eos_token_id": [5, 2, 5]}).spec.eos_tokens == (5, 2)
    assert read_family(config, {"eos_token_id": 7}).spec.eos_tokens == (7,)
    assert read_family(config, {"eos_token_id": None}).spec.eos_tokens == (2,)
    assert read_family(config | {"eos_token_id": None, "bos_token_id": None}).spec.bos_token is None


def test_unclaimed_tensors_are_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint("qwen2", tmp_path)
    family = read_family(read_config(folder))
    strange = "model.layers.0.self_attn.sinks"
    computed = "model.layers.1.self_attn.rotary_emb.inv_freq"
    names = [source.name for source in family.tensors.values()]
    assert family.unclaimed([*names, computed, strange, "lm_head.weight"]) == (strange,)
