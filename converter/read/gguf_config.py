"""Convert a GGUF file's metadata to the `config.json` and `generation_config.json` of its model.

Properties that llama.cpp fixes in its code and not in the file (Gemma's windows and scales,
SmolLM3's layers without rotation) are listed here. An architecture field that nothing here reads is
an error, as in a `config.json`.

Source: ggml, docs/gguf.md; llama.cpp, `convert_hf_to_gguf.py` and `src/llama-model.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.gguf import GgufFile
from edgetok.models.config.reader import ConfigReader, shown

Config = dict[str, Any]
Factors = dict[str, npt.NDArray[np.float32]]

# They describe a model's history or size, not its arithmetic.
_INFORMATION = (
    "vocab_size", "rope.scaling.finetuned", "tensor_data_layout", "attention.causal",
    "use_parallel_residual",
)  # fmt: skip
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `general.architecture` and its family in transformers.

    Attributes:
        model_type: model type of the family.
        causal_lm: transformers' class.
        interleaved: whether the rows of queries and keys stand in pairs, as llama.cpp rotates them.
        norm_add: what the conversion added to norms' weights.
        more: the family's own keys.
    """

    model_type: str
    causal_lm: str
    more: Callable[[ConfigReader, Config], Config]
    interleaved: bool = False
    norm_add: float = 0.0


def architecture_of(file: GgufFile) -> Architecture:
    """Return the file's architecture.

    Raises:
        UnsupportedError: none that is known here.
    """
    name = file.fields.get("general.architecture")
    result = _ARCHITECTURES.get(name) if isinstance(name, str) else None
    if result is None:
        raise UnsupportedError(
            f"{file.path.name}: general.architecture is {shown(name)}, expected one of "
            f"{', '.join(_ARCHITECTURES)}"
        )
    return result


def config_of(file: GgufFile, factors: Factors) -> Config:
    """Return the model's `config.json`.

    Args:
        file: opened.
        factors: what rotary frequencies are divided by, by the tensor's name (`FACTORS`).

    Raises:
        CheckpointError: a field is missing, of the wrong type or out of range.
        UnsupportedError: a field that may change what the model computes is not known here.
    """
    architecture = architecture_of(file)
    name = str(file.fields["general.architecture"])
    reader = ConfigReader(
        {
            key.removeprefix(name + "."): v.tolist() if isinstance(v, np.ndarray) else v
            for key, v in file.fields.items()
            if key.startswith(name + ".")
        },
        f"{file.path.name}: {name}",
    )
    embedding = file.infos.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path.name}: tensor 'token_embd.weight' is missing")
    hidden_size = reader.integer("embedding_length", high=1 << 20)
    heads = reader.integer("attention.head_count", high=1 << 12)
    head_dim = reader.integer("attention.key_length", max(1, hidden_size // heads), high=1 << 12)
    reader.expect("attention.value_length", head_dim)
    config: Config = {
        "architectures": [architecture.causal_lm],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": reader.integer("feed_forward_length", high=1 << 22),
        "num_hidden_layers": reader.integer("block_count", high=4096),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.integer("attention.head_count_kv", heads, high=1 << 12),
        "head_dim": head_dim,
        "max_position_embeddings": reader.integer("context_length", high=1 << 28),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        "tie_word_embeddings": "output.weight" not in file.infos,
        "torch_dtype": "float32",
        "rope_theta": reader.number("rope.freq_base", 1e4),
    }
    rotary_dim = reader.integer("rope.dimension_count", head_dim, high=1 << 12)
    config["rope_scaling"] = _scaling(reader, config, factors, rotary_dim)
    if rotary_dim != head_dim:
        config["partial_rotary_factor"] = rotary_dim / head_dim
    config |= architecture.more(reader, config)
    for bias in ("attention_bias", "mlp_bias"):
        tensor = {"attention_bias": "attn_q", "mlp_bias": "ffn_gate"}[bias]
        if f"blk.0.{tensor}.bias" in file.infos and architecture.model_type != "qwen2":
            config[bias] = True
    for key in _INFORMATION:
        reader.value(key)
    reader.finish()
    for key, value in token_ids(file, embedding.shape[0]).items():
        config[key] = value[0] if key == "eos_token_id" else value
    return config


def token_ids(file: GgufFile, vocab_size: int) -> Config:
    """`bos_token_id` and `eos_token_id`, the latter a list of all that end an answer.

    Raises:
        CheckpointError: an id is beyond the vocabulary.
    """
    reader = ConfigReader(
        {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in file.fields.items()
            if key.endswith("_token_id") and key.startswith("tokenizer.ggml.")
        },
        f"{file.path.name}: tokenizer.ggml",
    )
    ids: Config = {}
    result = reader.tokens("bos_token_id", vocab_size)
    if result:
        ids["bos_token_id"] = result[0]
    ends: list[int] = []
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        ends += reader.tokens(key, vocab_size) or ()
    tokens = file.fields.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        # llama.cpp finds them by their text too: many files do not name them.
        ends += [i for i, text in enumerate(tokens[:vocab_size]) if text in _ENDS]
    if ends:
        ids["eos_token_id"] = list(dict.fromkeys(ends))
    return ids


_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<|eom_id|>",
})  # fmt: skip


def _scaling(
    reader: ConfigReader, config: Config, factors: Factors, rotary_dim: int
) -> Config | None:
    """`rope_scaling`."""
    kind = reader.text("rope.scaling.type", "none")
    attention_factor = reader.number("rope.scaling.attn_factor", 1.0)
    context = int(config["max_position_embeddings"])
    original = reader.integer("rope.scaling.original_context_length", context, high=1 << 28)
    for name, values in factors.items():
        if values.shape != (rotary_dim // 2,):
            raise CheckpointError(
                f"{reader.where}: tensor {name!r} has shape {list(values.shape)}, expected "
                f"{[rotary_dim // 2]}"
            )
    if factors:
        # Also llama3's, of which a file has the factors and not the rule.
        plain = factors.get("rope_freqs.weight")
        short = factors.get("rope_factors_short.weight", plain)
        long = factors.get("rope_factors_long.weight", plain)
        if short is None or long is None or kind not in ("none", "longrope"):
            raise UnsupportedError(f"{reader.where}: rotary factors with scaling {kind!r:.20}")
        return {
            "rope_type": "longrope",
            "short_factor": [float(str(factor)) for factor in short],
            "long_factor": [float(str(factor)) for factor in long],
            "original_max_position_embeddings": original,
            "attention_factor": attention_factor,
        }
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(
            f"{reader.where}: rope.scaling.type is {kind!r:.20}, expected none, linear, yarn or "
            "longrope with its factors"
        )
    scaling: Config = {"rope_type": kind, "factor": reader.number("rope.scaling.factor", low=1.0)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original
        reader.expect("rope.scaling.attn_factor", 1.0)
        for key in ("beta_fast", "beta_slow"):
            result = reader.optional_number(f"rope.scaling.yarn_{key}")
            if result is not None:
                scaling[key] = result
    return scaling


def _plain(reader: ConfigReader, config: Config) -> Config:
    return {"hidden_act": "silu"}


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


_ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _plain, interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _plain),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _plain),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _gemma2, norm_add=1.0),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _gemma3, norm_add=1.0),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _phi3),
    "granite": Architecture("granite", "GraniteForCausalLM", _granite, interleaved=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _smollm3, interleaved=True),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", _plain),
}
