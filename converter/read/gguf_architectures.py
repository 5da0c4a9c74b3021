"""The architectures of GGUF files, each with its family in transformers.

Properties that llama.cpp fixes in its code and not in the file (Gemma's windows and scales,
SmolLM3's layers without rotation, normed shares of experts) are listed here.

Source: llama.cpp, `convert_hf_to_gguf.py`, `conversion/` and `src/models/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetok.converter.read.gguf_gemma4 import gemma4
from edgetok.errors import UnsupportedError
from edgetok.formats.gguf import GgufFile
from edgetok.models.config.reader import ConfigReader, shown

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `general.architecture` and its family in transformers.

    Attributes:
        model_type: model type of the family.
        causal_lm: transformers' class.
        more: returns the family's own keys of `config.json`.
        interleaved: whether the rows of queries and keys stand in pairs, as llama.cpp rotates them.
        norm_add: what the conversion added to norms' weights, but to those of recurrent layers.
        by_layer: whether the numbers of KV heads and of inner values may be lists, one a layer.
        apart: the file's tensors, by canonical name, that transformers has as parts of larger ones.
        tiled: whether heads of values of delta nets stand with the first of each key head first,
            then the second, and so on.
        guessing: whether its last blocks may be ones that guess further tokens, which are not read.
        eps: field of what norms add to the mean of squares.
    """

    model_type: str
    causal_lm: str
    more: Callable[[ConfigReader, Config], Config]
    interleaved: bool = False
    norm_add: float = 0.0
    by_layer: bool = False
    apart: Mapping[str, str] = field(default_factory=dict)
    tiled: bool = False
    guessing: bool = False
    eps: str = "attention.layer_norm_rms_epsilon"


def architecture_of(file: GgufFile) -> Architecture:
    """Return the file's architecture.

    Raises:
        UnsupportedError: none that is known here.
    """
    name = file.fields.get("general.architecture")
    result = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if result is None:
        near = _ORIGINALS.get(name) if isinstance(name, str) else None
        remedy = f"; convert {near}" if near else ""
        raise UnsupportedError(
            f"{file.path.name}: general.architecture is {shown(name)}, expected one of "
            f"{', '.join(ARCHITECTURES)}{remedy}"
        )
    return result


def _plain(reader: ConfigReader, config: Config) -> Config:
    return {"hidden_act": "silu"}


def _bitnet(reader: ConfigReader, config: Config) -> Config:
    # Files of before this field have SiLU, as llama.cpp computes them.
    return {"hidden_act": reader.text("hidden_activation", "silu")}


def _gemma2(reader: ConfigReader, config: Config) -> Config:
    # The 27B alone, with 46 layers, scales by the width instead of the head's.
    large = config["num_hidden_layers"] == 46
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": reader.integer("attention.sliding_window", 4096, high=1 << 28),
        "attn_logit_softcapping": reader.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": reader.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _scalar(config, large),
    }


def _gemma3(reader: ConfigReader, config: Config) -> Config:
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": reader.integer("attention.sliding_window", high=1 << 28),
        "sliding_window_pattern": reader.integer("attention.sliding_window_pattern", 6, high=4096),
        "rope_local_base_freq": reader.number("rope.freq_base_swa", 1e4),
        "final_logit_softcapping": reader.optional_number("final_logit_softcapping"),
        "query_pre_attn_scalar": _scalar(config, config["num_hidden_layers"] == 62),
    }


def _scalar(config: Config, large: bool) -> int:
    if large:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _granite(reader: ConfigReader, config: Config) -> Config:
    return {
        "hidden_act": "silu",
        "attention_multiplier": reader.number("attention.scale"),
        "embedding_multiplier": reader.number("embedding_scale", 1.0),
        "residual_multiplier": reader.number("residual_scale", 1.0),
        "logits_scaling": reader.number("logit_scale"),
    }


def _hunyuan(reader: ConfigReader, config: Config) -> Config:
    """Read nothing: the base of the rotary embedding is stored as it is computed with."""
    reader.expect("rope.scaling.factor", 1.0)
    return {"hidden_act": "silu"}


def _phi3(reader: ConfigReader, config: Config) -> Config:
    window = reader.optional_integer("attention.sliding_window", low=0, high=1 << 28)
    more: Config = {"hidden_act": "silu", "sliding_window": window or None}
    scaling = config["rope_scaling"]
    if scaling is not None:
        # transformers derives the factor of queries and keys, and takes it from nobody.
        original = scaling["original_max_position_embeddings"]
        longer = max(1.0, config["max_position_embeddings"] / original)
        derived = math.sqrt(1 + math.log(longer) / math.log(original))
        if not math.isclose(scaling["attention_factor"], derived, rel_tol=1e-5):
            raise reader.unsupported(
                "rope.scaling.attn_factor", scaling["attention_factor"], f"{derived:.6g}"
            )
        more["original_max_position_embeddings"] = original
        factors = {key: scaling[key] for key in ("short_factor", "long_factor")}
        more["rope_scaling"] = {"type": "longrope", **factors}
    return more


def _smollm3(reader: ConfigReader, config: Config) -> Config:
    return {"hidden_act": "silu", "no_rope_layer_interval": 4}


def _arcee(reader: ConfigReader, config: Config) -> Config:
    return {"hidden_act": "relu2"}


def _glm4(reader: ConfigReader, config: Config) -> Config:
    return {
        "hidden_act": "silu",
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        "attention_bias": False,  # until a tensor says otherwise
    }


def _cohere2(reader: ConfigReader, config: Config) -> Config:
    """Every fourth layer sees all tokens and does not rotate."""
    return {
        "hidden_act": "silu",
        "layer_norm_eps": config["rms_norm_eps"],
        "rms_norm_eps": None,
        "logit_scale": reader.number("logit_scale"),
        "sliding_window": reader.integer("attention.sliding_window", high=1 << 28),
        "attention_bias": False,
    }


def _experts(reader: ConfigReader) -> Config:
    """Keys of a layer's experts, under the names of most families."""
    return {
        "num_experts": reader.integer("expert_count", high=1024),
        "num_experts_per_tok": reader.integer("expert_used_count", high=32),
        "moe_intermediate_size": reader.integer("expert_feed_forward_length", high=1 << 20),
    }


def _qwen3moe(reader: ConfigReader, config: Config) -> Config:
    reader.expect("expert_shared_feed_forward_length", 0)
    return {"hidden_act": "silu", **_experts(reader), "norm_topk_prob": True}


def _ernie4_5_moe(reader: ConfigReader, config: Config) -> Config:
    experts, count = _experts(reader), reader.integer("expert_shared_count", low=0, high=64)
    reader.expect("expert_shared_feed_forward_length", count * experts["moe_intermediate_size"])
    return {
        "hidden_act": "silu",
        "moe_num_experts": experts["num_experts"],
        "moe_k": experts["num_experts_per_tok"],
        "moe_intermediate_size": experts["moe_intermediate_size"],
        "moe_num_shared_experts": count,
        "moe_layer_start_index": reader.integer("leading_dense_block_count", low=0, high=4096),
        "moe_layer_interval": reader.integer("interleave_moe_layer_step", high=4096),
        "use_bias": False,
    }


def _gpt_oss(reader: ConfigReader, config: Config) -> Config:
    scaling = config["rope_scaling"]
    return {
        "intermediate_size": reader.integer("expert_feed_forward_length", high=1 << 20),
        "num_local_experts": reader.integer("expert_count", high=1024),
        "num_experts_per_tok": reader.integer("expert_used_count", high=32),
        "sliding_window": reader.integer("attention.sliding_window", high=1 << 28),
        # As its model was trained; the file does not say so.
        "rope_scaling": scaling and {**scaling, "truncate": False},
        "attention_bias": False,  # until a tensor says otherwise
    }


def _lfm2(reader: ConfigReader, config: Config) -> Config:
    attends = reader.value("attention.head_count_kv")
    kinds = attends if isinstance(attends, list) else [1] * config["num_hidden_layers"]
    return {
        "norm_eps": config["rms_norm_eps"],
        "rms_norm_eps": None,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["full_attention" if heads else "conv" for heads in kinds],
        "conv_L_cache": reader.integer("shortconv.l_cache", high=1 << 10),
    }


def _lfm2moe(reader: ConfigReader, config: Config) -> Config:
    more = _lfm2(reader, config)
    del more["block_auto_adjust_ff_dim"]
    reader.expect("expert_gating_func", _SIGMOID)
    reader.expect("expert_weights_norm", True)
    reader.expect("expert_weights_scale", 1.0)
    dense = reader.integer("leading_dense_block_count", 0, low=0, high=4096)
    return {
        **more,
        **_experts(reader),
        "num_dense_layers": dense,
        "norm_topk_prob": True,
        "use_expert_bias": True,
    }


def _qwen3_5(reader: ConfigReader, config: Config) -> Config:
    reader.value("rope.dimension_sections")  # positions of text are the same in all of them
    count = config["num_hidden_layers"]
    interval = reader.integer("full_attention_interval", 4, high=4096)
    blocks = reader.integer("block_count", high=4096)
    recurrent = reader.switches("attention.recurrent_layers", blocks)
    if recurrent is None:
        recurrent = tuple(bool((i + 1) % interval) for i in range(count))
    size = reader.integer("ssm.inner_size", high=1 << 24)
    heads = reader.integer("ssm.time_step_rank", high=1 << 12)
    if size % heads:
        raise reader.unsupported("ssm.inner_size", size, f"a multiple of {heads} heads")
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0),
        "layer_types": [
            "linear_attention" if kind else "full_attention" for kind in recurrent[:count]
        ],
        "linear_num_key_heads": reader.integer("ssm.group_count", high=1 << 12),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": reader.integer("ssm.state_size", high=1 << 12),
        "linear_value_head_dim": size // heads,
        "linear_conv_kernel_dim": reader.integer("ssm.conv_kernel", high=1 << 10),
    }


def _qwen3_next(reader: ConfigReader, config: Config) -> Config:
    shared = reader.integer("expert_shared_feed_forward_length", high=1 << 20)
    reader.expect("expert_weights_scale", 1.0)
    return {
        **_qwen3_5(reader, config),
        **_experts(reader),
        "norm_topk_prob": True,
        "shared_expert_intermediate_size": shared,
    }


def _qwen3_5_moe(reader: ConfigReader, config: Config) -> Config:
    more = _qwen3_next(reader, config)
    return {**more, "norm_topk_prob": None, "intermediate_size": None}


def _granitehybrid(reader: ConfigReader, config: Config) -> Config:
    width, hidden_size = reader.integer("ssm.inner_size", high=1 << 24), config["hidden_size"]
    heads = reader.integer("ssm.time_step_rank", high=1 << 12)
    if width % heads or width % hidden_size:
        expected = f"a multiple of {heads} heads and of embedding_length {hidden_size}"
        raise reader.unsupported("ssm.inner_size", width, expected)
    count = reader.integer("expert_count", 0, low=0, high=1024)
    # Without experts the shared network is the only one, under the names of an ordinary one.
    shared = reader.optional_integer("expert_shared_feed_forward_length", high=1 << 22)
    attends = reader.value("attention.head_count_kv")
    kinds = attends if isinstance(attends, list) else [1] * config["num_hidden_layers"]
    return {
        **_granite(reader, config),
        "position_embedding_type": "rope" if reader.flag(_ROTATES, True) else "nope",
        "layer_types": ["attention" if heads else "mamba" for heads in kinds],
        "num_local_experts": count,
        "num_experts_per_tok": reader.integer("expert_used_count", 0, low=min(count, 1), high=32),
        "shared_intermediate_size": shared if count else config["intermediate_size"],
        "attention_bias": False,
        "mamba_conv_bias": False,  # until a tensor says otherwise
        "mamba_expand": width // hidden_size,
        "mamba_n_heads": heads,
        "mamba_d_head": width // heads,
        "mamba_n_groups": reader.integer("ssm.group_count", high=1 << 12),
        "mamba_d_state": reader.integer("ssm.state_size", high=1 << 12),
        "mamba_d_conv": reader.integer("ssm.conv_kernel", high=1 << 10),
    }


# What to convert in the place of files of other architectures.
_ORIGINALS = {
    "bitnet-b1.58": "the safetensors of microsoft/bitnet-b1.58-2B-4T, whose weights are kept",
    "gemma3n": "a Gemma 4 model (E2B, E4B), which gemma3n is not",
    **{
        name: f"the model's original safetensors ({family}), which edgetok knows"
        for name, family in {
            "exaone4": "exaone4",
            "gemma": "gemma",
            "gemma-embedding": "embeddinggemma",
            "olmoe": "olmoe",
            "qwen2moe": "qwen2_moe",
            "seed_oss": "seed_oss",
        }.items()
    },
}

_SIGMOID = 2  # of `expert_gating_func`
_ROTATES = "rope.scaling.finetuned"  # llama.cpp's switch of this family's rotary embedding
_SUB_NORMS = {name: name for name in ("attn_sub_norm", "ffn_sub_norm")}
_DENSE = {f"{which}_proj": f"ffn_{which}" for which in ("gate", "up", "down")}
_SHARED = {f"shared_{which}_proj": f"ffn_{which}_shexp" for which in ("gate", "up", "down")}
_EXPERTS = {f"experts_{which}": f"ffn_{which}_exps" for which in ("gate", "up", "down")}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _plain, interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _plain),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _plain),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _gemma2, norm_add=1.0),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _gemma3, norm_add=1.0),
    "gemma4": Architecture("gemma4_text", "Gemma4ForCausalLM", gemma4, by_layer=True),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _phi3),
    "granite": Architecture("granite", "GraniteForCausalLM", _granite, interleaved=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _smollm3, interleaved=True),
    "arcee": Architecture("arcee", "ArceeForCausalLM", _arcee, interleaved=True),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", _plain),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", _hunyuan),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", _ernie4_5_moe, apart=_EXPERTS
    ),
    "cohere2": Architecture(
        "cohere2", "Cohere2ForCausalLM", _cohere2, eps="attention.layer_norm_epsilon"
    ),
    "glm4": Architecture("glm4", "Glm4ForCausalLM", _glm4),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", _plain),
    "bitnet": Architecture("bitnet", "BitNetForCausalLM", _bitnet, apart=_SUB_NORMS),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3moe, apart=_EXPERTS),
    "gpt-oss": Architecture("gpt_oss", "GptOssForCausalLM", _gpt_oss, apart=_EXPERTS),
    "lfm2": Architecture("lfm2", "Lfm2ForCausalLM", _lfm2, by_layer=True),
    "lfm2moe": Architecture(
        "lfm2_moe", "Lfm2MoeForCausalLM", _lfm2moe, by_layer=True, apart=_EXPERTS
    ),
    "qwen35": Architecture(
        "qwen3_5_text", "Qwen3_5ForCausalLM", _qwen3_5, norm_add=1.0, tiled=True, guessing=True
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        _qwen3_5_moe,
        norm_add=1.0,
        apart=_EXPERTS,
        tiled=True,
        guessing=True,
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        _qwen3_next,
        norm_add=1.0,
        apart={**_EXPERTS, "delta_qkv": "attn_qkv", "delta_z": "attn_gate"},
        guessing=True,
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        _granitehybrid,
        interleaved=True,
        by_layer=True,
        apart=_EXPERTS | _SHARED | _DENSE,
    ),
}
