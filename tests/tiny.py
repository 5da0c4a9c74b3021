"""Tiny random Hugging Face checkpoints of every family, with sizes that divide nothing.

72 inputs are not a multiple of a group of 32, 4 heads of 24 dims are not 72, 307 tokens and 100
inner dims are ragged too. Windows are 8 tokens and the longrope's trained length is 16, so that 20
to 40 tokens reach every branch. Norms and biases are random, so that leaving one out shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 307
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# 18 of 24 dims rotate: 9 pairs.
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(9)],
    "long_factor": [1.5 + 0.75 * i for i in range(9)],
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_scaling": _LLAMA3},
    "mistral": {"sliding_window": 8},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 20,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "tie_word_embeddings": True,
    },
    "phi3": {
        # transformers checks the factors against hidden_size / num_attention_heads.
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 16,
        "rope_scaling": _LONGROPE,
    },
    "smollm3": {
        "num_hidden_layers": 4,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.5,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.15,
        "attention_bias": True,
    },
    "olmo2": {},
    "lfm2": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "rms_norm_eps": None,
        "norm_eps": 1e-5,
        "block_multiple_of": 4,
        "tie_word_embeddings": True,
    },
    "olmo3": {
        "num_hidden_layers": 4,
        "sliding_window": 8,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "exaone4": {"num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": 3},
    "ministral": {
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    # Only transformers 5 knows it. Queries grow at tokens 16 and 32.
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "seed_oss": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "qwen3_moe": {
        "num_hidden_layers": 4,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 44,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
    "qwen2_moe": {
        # transformers takes no head_dim here.
        "head_dim": 18,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 44,
        "shared_expert_intermediate_size": 52,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "num_hidden_layers": 4,
    },
    "olmoe": {
        "head_dim": 18,
        "num_experts": 7,
        "num_experts_per_tok": 4,
        "intermediate_size": 44,
        "norm_topk_prob": False,
    },
    "mixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
        "intermediate_size": 44,
        "sliding_window": 8,
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 30,
        "linear_value_head_dim": 40,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "mlp_only_layers": [0],
        "num_experts": 5,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 44,
        "shared_expert_intermediate_size": 52,
    },
    # Only transformers 5 knows it.
    "qwen3_5_text": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] + 2 * ["linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 30,
        "linear_value_head_dim": 40,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": True,
    },
    "qwen3_5_moe_text": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "intermediate_size": None,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 30,
        "linear_value_head_dim": 40,
        "partial_rotary_factor": 0.5,
        "num_experts": 5,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 44,
        "shared_expert_intermediate_size": 52,
    },
    "granitemoehybrid": {
        "head_dim": None,  # its model takes hidden_size / num_attention_heads
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "attention", "mamba", "mamba"],
        "mamba_n_heads": 6,
        "mamba_n_groups": 1,
        "mamba_d_state": 20,
        "mamba_chunk_size": 16,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "intermediate_size": 44,
        "shared_intermediate_size": 52,
        "position_embedding_type": "nope",
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.5,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.15,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    # Only transformers 5 knows it.
    "lfm2_moe": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "head_dim": 18,
        "rms_norm_eps": None,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "num_dense_layers": 1,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 44,
        "routed_scaling_factor": 1.5,
    },
    # Only transformers 5 knows it.
    "lfm3": {
        "num_hidden_layers": 5,
        "layer_types": ["conv", "full_attention", "conv", "conv", "sliding_attention"],
        "rms_norm_eps": None,
        "norm_eps": 1e-5,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "gpt_oss": {
        "num_hidden_layers": 4,
        "head_dim": 26,
        "sliding_window": 8,
        "intermediate_size": 44,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
    },
    "gemma": {"attention_bias": True, "tie_word_embeddings": True},
    # Its model norms as many values as the model is wide behind attention.
    "bitnet": {"head_dim": 18, "attention_bias": True},
    # Only transformers 5 knows it. Layer 3 looks at what layer 2 stores, 4 and 5 at layer 1's.
    "gemma4_text": {
        "num_hidden_layers": 6,
        "layer_types": [
            f"{kind}_attention"
            for kind in ("sliding", "full", "sliding", "sliding", "full", "full")
        ],
        "sliding_window": 8,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "global_head_dim": 40,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    # With experts beside the dense network, as the larger ones have them.
    "gemma4_experts": {
        "num_hidden_layers": 4,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "full")],
        "sliding_window": 8,
        "global_head_dim": 40,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 4,
        "moe_intermediate_size": 44,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    # Layers 3 and 4 look at what layers 2 and 1 store.
    "gemma3n_text": {
        "num_hidden_layers": 5,
        "layer_types": [
            f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")
        ],
        "intermediate_size": [100, 100, 100, 84, 84],
        "sliding_window": 8,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 300,  # other tokens have the inputs of the first
        "altup_num_inputs": 3,
        "laurel_rank": 10,
        "activation_sparsity_pattern": [0.9, 0.0, 0.75, 0.0, 0.0],
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "arcee": {"attention_bias": True, "mlp_bias": True, "rope_scaling": _LLAMA3},
    # Its model has heads as wide as the model alone.
    "helium": {"head_dim": 18, "attention_bias": True, "mlp_bias": True},
    "ernie4_5": {"use_bias": True, "tie_word_embeddings": True},
    "ernie4_5_moe": {
        "head_dim": 18,
        "num_hidden_layers": 4,
        "moe_num_experts": 5,
        "moe_k": 4,  # of few, so that rounding seldom chooses others
        "moe_num_shared_experts": 2,
        "moe_intermediate_size": 28,
        "moe_layer_start_index": 1,
        "tie_word_embeddings": True,
    },
    "hunyuan_v1_dense": {
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0},
        "tie_word_embeddings": True,
    },
    "cohere2": {
        "num_hidden_layers": 4,
        "head_dim": 18,
        "sliding_window": 8,
        "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "full")],
        "rms_norm_eps": None,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.5,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    # 12 of 24 dims rotate.
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "vaultgemma": {
        "sliding_window": 8,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
}
ALL_FAMILIES = tuple(_FAMILIES)
# Their `model_type`, where it is not their name.
_MODEL_TYPES = {"gemma4_experts": "gemma4_text"}


def model_type(family: str) -> str:
    """Return the `model_type` of a tiny model."""
    return _MODEL_TYPES.get(family, family)


# Layers of Gemma 3n share keys and values without a cache only in transformers 5.
_KNOWN = set(CONFIG_MAPPING) - ({"gemma3n_text"} if transformers.__version__[0] == "4" else set())
FAMILIES = tuple(family for family in _FAMILIES if model_type(family) in _KNOWN)
WITH_STATES = tuple(
    family
    for family in (
        "lfm2",
        "qwen3_next",
        "qwen3_5_text",
        "qwen3_5_moe_text",
        "granitemoehybrid",
        "lfm2_moe",
        "lfm3",
    )
    if family in FAMILIES
)
WITH_EXPERTS = tuple(
    family
    for family in (
        "qwen3_next",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "qwen2_moe",
        "olmoe",
        "mixtral",
        "granitemoehybrid",
        "lfm2_moe",
        "gpt_oss",
        "gemma4_experts",
        "ernie4_5_moe",
    )
    if family in FAMILIES
)
# In transformers 5 their modules have other names than their files: the originals are not run.
RENAMED = tuple(
    family
    for family in ("mixtral", "granitemoehybrid", "lfm3", "ernie4_5_moe")
    if not transformers.__version__.startswith("4.")
)
# Layers share keys and values, have heads of two sizes and inputs of their own.
UNLIKE_LAYERS = tuple(family for family in ("gemma4_text",) if family in FAMILIES)
# Their originals are not run: a block has several streams.
NOT_CALIBRATED = tuple(family for family in ("gemma3n_text",) if family in FAMILIES)
# Vectors that are near one, and not named as norms are.
_FACTORS = (
    *("layer_scalar", "layernorm_1.weight", "layernorm_2.weight"),
    *("router.scale", "per_expert_scale"),
)
# Configs with embeddings by layer type that transformers 4 has no keys for.
NEWER_ROPES = tuple(
    family for family in ("gemma4_text", "gemma4_experts", "lfm3") if family in FAMILIES
)


def tiny_checkpoint(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    shards: int = 1,
    bits16: bool = True,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a checkpoint of `family` into `folder` and return it.

    Args:
        family: HF model_type, or the name of another kind of model of one.
        folder: made where it does not exist.
        seed: of the weights.
        shards: how many safetensors files; from two on with an index.
        bits16: whether every weight is a float16 number, so that storing it in 16 bits is exact.
        dtype: what the files hold.
        config: overrides of the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {**sizes(family), **config}
    hf_config = AutoConfig.for_model(model_type(family), **values)
    hf_config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    hf_config.architectures = [type(model).__name__]
    hf_config.save_pretrained(folder)
    rng = np.random.default_rng(seed)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if hf_config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    # Some store norms less one; the random values are then around zero.
    less_one = (
        *("gemma", "gemma2", "gemma3_text", "vaultgemma"),
        *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    )
    centre = 0.0 if family in less_one else 1.0
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        if len(shape) == 1:
            around_one = name.endswith(("linear_attn.norm.weight", *_FACTORS))
            own = 1.0 if around_one else centre
            noise = 0.2 * noise + (own if name.endswith(("norm.weight", *_FACTORS)) else 0.0)
        else:
            noise *= 0.5 if "embed_tokens" in name else 1.2 / np.sqrt(shape[1])
        array = noise.astype(np.float16) if bits16 else noise
        weights[name] = torch.from_numpy(array.astype(np.float32)).to(dtype)
    if family in RENAMED:
        weights = _under_published_names(model, weights)
    _save(weights, folder, shards)
    write_tokenizer(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": False})
    )
    return folder


def sizes(family: str) -> dict[str, Any]:
    """Settings of a tiny model."""
    values = {**_SIZES, **_FAMILIES[family]}
    return {key: value for key, value in values.items() if value is not None}


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' model of the checkpoint, with plain attention (which alone has softcaps)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def _under_published_names(
    model: PreTrainedModel, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`weights` under the names that transformers 5 saves, which are those of published files."""
    from transformers.core_model_loading import revert_weight_conversion

    published = revert_weight_conversion(model, weights)
    return {name: tensor.contiguous() for name, tensor in published.items()}


def _save(weights: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata)
        return
    names = list(weights)
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_file({name: weights[name] for name in part}, folder / file, metadata)
        places.update(dict.fromkeys(part, file))
    total = sum(w.nbytes for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    specials = ["<pad>", "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 7,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the small dog and the little cat sat on the mat and then they ran to the sea. "
    tokenizer.train_from_iterator([text * 4], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
