"""Convert a GGUF file's metadata to the `config.json` and `generation_config.json` of its model.

An architecture field that nothing reads, here or in `gguf_architectures.py`, is an error, as in a
`config.json`.

Source: ggml, docs/gguf.md; llama.cpp, `convert_hf_to_gguf.py` and `src/llama-model.cpp`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.converter.read.gguf_architectures import Config, architecture_of
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.gguf import GgufFile
from edgetok.models.config.reader import ConfigReader

Factors = dict[str, npt.NDArray[np.float32]]

# They describe a model's history or size, not its arithmetic.
_INFORMATION = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
# What a config says of biases, and the tensor of a layer that has them.
_BIASES = {"attention_bias": "attn_q", "mlp_bias": "ffn_gate", "mamba_conv_bias": "ssm_conv1d"}
GUESSING = "nextn_predict_layers"  # how many of the last blocks guess further tokens
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


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
    blocks = reader.integer("block_count", high=4096)
    guessing = reader.integer(GUESSING, 0, low=0, high=blocks - 1) if architecture.guessing else 0
    by_layer = blocks if architecture.by_layer else 0
    head_dim = reader.integer("attention.key_length", max(1, hidden_size // heads), high=1 << 12)
    reader.expect("attention.value_length", head_dim)
    reader.expect("attention.causal", True)
    reader.expect("use_parallel_residual", False)
    # Files of models without any dense network have no size of it.
    inner = reader.optional_integer("expert_feed_forward_length", high=1 << 22)
    config: Config = {
        "architectures": [architecture.causal_lm],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": _size(reader, "feed_forward_length", 1 << 22, by_layer, inner),
        "num_hidden_layers": blocks - guessing,
        "num_attention_heads": heads,
        "num_key_value_heads": _size(reader, "attention.head_count_kv", 1 << 12, by_layer, heads),
        "head_dim": head_dim,
        "max_position_embeddings": reader.integer("context_length", high=1 << 28),
        "rms_norm_eps": reader.number(architecture.eps, low=0.0, high=1.0),
        "tie_word_embeddings": "output.weight" not in file.infos,
        "torch_dtype": "float32",
        "rope_theta": reader.number("rope.freq_base", 1e4),
    }
    rotary_dim = reader.integer("rope.dimension_count", head_dim, high=1 << 12)
    config["rope_scaling"] = _scaling(reader, config, factors, rotary_dim)
    if rotary_dim != head_dim:
        config["partial_rotary_factor"] = rotary_dim / head_dim
    config |= architecture.more(reader, config)
    for bias, tensor in _BIASES.items():
        if architecture.model_type != "qwen2" and any(
            name.startswith("blk.") and name.endswith(f".{tensor}.bias") for name in file.infos
        ):
            config[bias] = True
    if "attention_k_eq_v" in config:
        own = range(config["num_hidden_layers"] - config["num_kv_shared_layers"])
        missing = [f"blk.{i}.attn_v.weight" not in file.infos for i in own]
        config["attention_k_eq_v"] = any(missing)
    for key in _INFORMATION:
        reader.value(key)
    reader.finish()
    for key, value in token_ids(file, embedding.shape[0]).items():
        config[key] = value[0] if key == "eos_token_id" else value
    return config


def _size(
    reader: ConfigReader, key: str, high: int, by_layer: int, default: int | None = None
) -> int:
    """Return a size, or where layers may differ the largest of a list; 0: a layer without."""
    value = reader.value(key)
    if not by_layer or not isinstance(value, list):
        return reader.integer(key, default, high=high)
    sizes = reader.numbers(key, by_layer, low=0, high=high)
    if not max(sizes):
        raise reader.unsupported(key, value, "models with attention in one layer at least")
    return int(max(sizes))


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
    "<|eom_id|>", "<|return|>", "<|call|>", "<turn|>", "<|tool_response>",
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
