"""Configs that must be refused, in one line that names the key."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetok.errors import CheckpointError, UnknownFamilyError, UnsupportedError, UserError
from edgetok.models import read_family
from edgetok.models.registry import families
from tests.models.rope_styles import as_transformers_4
from tests.models.test_spec import JSON
from tests.tiny import FAMILIES, NEWER_ROPES, tiny_checkpoint


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A config of each family, in the style of transformers 4 where that ever wrote one."""
    root = tmp_path_factory.mktemp("tiny")
    folders = {family: tiny_checkpoint(family, root / family) for family in FAMILIES}
    texts = {family: (folder / "config.json").read_text() for family, folder in folders.items()}
    read = {family: json.loads(text) for family, text in texts.items()}
    return {
        family: config if family in NEWER_ROPES else as_transformers_4(config)
        for family, config in read.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"bits": 4}),
        ("attention_sinks", 4),
        ("num_experts_shared_by_layers", 8),
        ("use_parallel_residual", True),
        ("partial_rotary", 0.5),
        ("alibi", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_unknown_keys(
    family: str, key: str, value: object, configs: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(UnsupportedError, match=key):
        read_family(configs[family] | {key: value})
    assert read_family(configs[family] | {key: None}) == read_family(configs[family])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_experts_of_a_dense_family(family: str, configs: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UnsupportedError, match="num_experts"):
        read_family(configs[family] | {"num_experts": 8})


@pytest.mark.parametrize(
    ("family", "kind"),
    [("lfm2", "conv"), ("qwen3_next", "linear_attention"), ("granitemoehybrid", "mamba")],
)
def test_no_attention(family: str, kind: str, configs: dict[str, dict[str, Any]]) -> None:
    config = configs[family]
    types = {"layer_types": [kind] * config["num_hidden_layers"], "full_attn_idxs": None}
    with pytest.raises(UnsupportedError, match="no layer is attention"):
        read_family(config | types)


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_arithmetic(family: str, configs: dict[str, dict[str, Any]]) -> None:
    config = configs[family]
    act = "hidden_activation" if "hidden_activation" in config else "hidden_act"
    with pytest.raises(UnsupportedError, match=f"{act} is 'relu'"):
        read_family(config | {act: "relu"})
    with pytest.raises(UnsupportedError, match="architectures"):
        read_family(config | {"architectures": ["SomeForSequenceClassification"]})
    if family in NEWER_ROPES:
        assert "rope_theta" not in config
        ropes = config["rope_parameters"]
        dynamic = ropes | {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}
        with pytest.raises(UnsupportedError, match="full_attention: rope_type is 'dynamic'"):
            read_family(config | {"rope_parameters": dynamic})
        return
    for style in ("rope_type", "type"):
        scaling = {style: "dynamic", "factor": 2.0}
        with pytest.raises(UnsupportedError, match=f"rope_scaling: {style} is 'dynamic'"):
            read_family(config | {"rope_scaling": scaling})
    linear = {"rope_type": "linear", "factor": 2.0}
    if not family.startswith("qwen3_5"):  # whose positions have axes also without a wrapper
        with pytest.raises(UnsupportedError, match="rope_scaling: 'mrope_section'"):
            read_family(config | {"rope_scaling": linear | {"mrope_section": [1, 2]}})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "linear", "factor": 0.5}, "factor is 0.5"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor is nan"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": 3}, "truncate is 3"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}, "high_freq_factor"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
         "original_max_position_embeddings is missing"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16,
          "short_factor": [1.0] * 11, "long_factor": [1.0] * 12}, "short_factor is a list of 11"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16,
          "short_factor": [1.0] * 12, "long_factor": ["x"] * 12}, "long_factor is 'x'"),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16, "factor": 9.0,
          "short_factor": [1.0] * 12, "long_factor": [1.0] * 12}, "factor is 9.0"),
        ({"rope_type": "linear", "type": "yarn", "factor": 2.0}, "type is 'yarn'"),
        ([1], "rope_scaling is a list of 1"),
        ("linear", "rope_scaling is 'linear'"),
    ],
)  # fmt: skip
def test_rope_settings(scaling: object, message: str, configs: dict[str, dict[str, Any]]) -> None:
    with pytest.raises((UnsupportedError, CheckpointError), match=message):
        read_family(configs["llama"] | {"rope_scaling": scaling})


def test_two_styles_that_disagree(configs: dict[str, dict[str, Any]]) -> None:
    plain = configs["llama"] | {"rope_scaling": None}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    with pytest.raises(UnsupportedError, match="rope_theta is 10000"):
        read_family(plain | {"rope_parameters": rope})
    with pytest.raises(CheckpointError, match="both rope_parameters and rope_scaling"):
        read_family(configs["llama"] | {"rope_parameters": rope})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
    ],
)
def test_hostile_numbers(family: str, key: str, configs: dict[str, dict[str, Any]]) -> None:
    if key == "rms_norm_eps" and key not in configs[family]:
        key = next(own for own in ("norm_eps", "layer_norm_eps") if own in configs[family])
    if key == "rope_theta" and family in NEWER_ROPES:
        key = "sliding_window"
    for value in (-1, 1 << 62, 10**5000, float("nan"), float("inf"), "64", [64], {"a": 1}, True):
        with pytest.raises(CheckpointError, match=key) as caught:
            read_family(configs[family] | {key: value})
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps"])
def test_missing_sizes(key: str, configs: dict[str, dict[str, Any]]) -> None:
    config = configs["llama"]
    del (changed := dict(config))[key]
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        read_family(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": None, "hidden_size": 73}, "add head_dim"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": [2, 307]}, "eos_token_id is 307"),
        ({"bos_token_id": -1}, "bos_token_id is -1"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"hidden_act": 3}, "hidden_act"),
    ],
)
def test_inconsistent_values(
    change: dict[str, Any], message: str, configs: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_family(configs["llama"] | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mamba_d_head": 32}, "mamba_d_head 32 is not"),
        ({"mamba_n_groups": 2}, "mamba_n_groups is 2"),
        ({"mamba_d_conv": 9}, "mamba_d_conv is 9"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 24}, "head_dim 24"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ({"time_step_limit": [0.0, 1.0]}, "time_step_limit"),
        ({"time_step_limit": [0.0, {"__float__": "NaN"}]}, "time_step_limit"),
        ({"time_step_limit": 3}, "time_step_limit is 3"),
        ({"normalization_function": "layernorm"}, "normalization_function is 'layernorm'"),
    ],
)
def test_state_spaces(
    change: dict[str, Any], message: str, configs: dict[str, dict[str, Any]]
) -> None:
    if "granitemoehybrid" not in configs:
        pytest.skip("this release of transformers lacks granitemoehybrid")
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        read_family(configs["granitemoehybrid"] | change)


@pytest.mark.parametrize(
    "name",
    ["gpt_neox", "spec", "registry", "family", "training", "training.model", "default", "os", "",
     "../llama", "llama\n", "__init__", "Llama"],
)  # fmt: skip
def test_unknown_families(name: str, configs: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UnknownFamilyError, match="model_type"):
        read_family(configs["llama"] | {"model_type": name})


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": None}])
def test_no_family(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="model_type"):
        read_family(config)


def test_multimodal_wrapper_says_what_to_do() -> None:
    with pytest.raises(UnknownFamilyError, match="text_config"):
        read_family({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})


@settings(max_examples=250, deadline=None, derandomize=True)
@given(drawn=st.data())
def test_any_value_is_read_or_refused(
    drawn: st.DataObject, configs: dict[str, dict[str, Any]]
) -> None:
    config = dict(configs[drawn.draw(st.sampled_from(FAMILIES))])
    for _ in range(drawn.draw(st.integers(1, 3))):
        place = config
        key = drawn.draw(st.sampled_from(sorted(config)))
        if isinstance(config[key], dict) and config[key]:
            place = config[key] = dict(config[key])
            key = drawn.draw(st.sampled_from(sorted(place)))
        place[key] = drawn.draw(JSON)
    generation = {"eos_token_id": drawn.draw(JSON)}
    message = ""
    try:
        assert read_family(config, generation).spec.to_json()
    except UserError as error:
        message = str(error)
    assert len(message) < 600


def test_family_names_stay_in_their_files(repository: Path) -> None:
    names = set(families())
    for folder in ("models", "kernels_cpu", "kernels_gpu", "edgetok/runtime"):
        for path in sorted((repository / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert node.value not in names, f"{path}:{node.lineno} names {node.value}"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"altup_active_idx": 1}, "altup_active_idx is 1, edgetok computes 0"),
        ({"altup_num_inputs": 9}, "altup_num_inputs is 9, expected an integer in 2..8"),
        (
            {"intermediate_size": [100, 84]},
            "intermediate_size is a list of 2, expected a list of 5",
        ),
        ({"activation_sparsity_pattern": [0.5] * 4 + [1.0]}, "activation_sparsity_pattern is 1.0"),
        ({"vocab_size_per_layer_input": 400}, "vocab_size_per_layer_input is 400"),
        ({"num_kv_shared_layers": 4}, "leaves no layer that stores keys"),
    ],
)
def test_gemma_3n(changed: dict[str, Any], says: str, configs: dict[str, dict[str, Any]]) -> None:
    if "gemma3n_text" not in configs:
        pytest.skip("the installed transformers shares keys and values with a cache alone")
    with pytest.raises((UnsupportedError, CheckpointError), match=says):
        read_family(configs["gemma3n_text"] | changed)
