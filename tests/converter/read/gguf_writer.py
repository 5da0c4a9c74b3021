"""Checkpoints as GGUF files, written by the `gguf` package as llama.cpp's conversion has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {"gemma3_text": "gemma3"}
INTERLEAVED = ("llama", "granite", "smollm3")


def interleaved(weight, heads):
    """A head's rows as 0, D/2, 1, D/2 + 1, ..."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def straight(weight, heads):
    """The inverse."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(
    source: Path,
    path: Path,
    kind: str = "F16",
    *,
    kinds: dict[str, str] | None = None,
    fields: dict[str, Any] | None = None,
    tokenizer: bool = True,
    edit: Any = None,
) -> dict[str, np.ndarray]:
    """Write `source` as a GGUF file; the weights that it holds, under their names in `source`.

    Args:
        source: a checkpoint of one safetensors file.
        path: the file.
        kind: type of every matrix.
        kinds: another type for matrices whose GGUF name holds a key of it.
        fields: more fields, or other values; None leaves one out.
        tokenizer: whether to write the tokenizer.
        edit: called with the writer before tensors are added.
    """
    config = json.loads((source / "config.json").read_text())
    family = config["model_type"]
    arch = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, arch)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["head_dim"]
    values: dict[str, Any] = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": heads,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.rope.freq_base": float(config["rope_theta"]),
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.vocab_size": config["vocab_size"],
        "general.file_type": 1,
        **(tokenizer_fields(source, config) if tokenizer else {}),
        **(fields or {}),
    }
    for key, value in values.items():
        add(writer, key, value)
    if edit is not None:
        edit(writer)
    names = gguf.get_tensor_name_map(
        {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch],
        config["num_hidden_layers"],
    )
    held = {}
    for name, weight in load_file(source / "model.safetensors").items():
        target = names.get_name(name, (".weight", ".bias"))
        weight = weight.astype(np.float32)
        rows = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        permuted = family in INTERLEAVED and rows is not None
        if permuted:
            weight = interleaved(weight, rows)
        if family.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + np.float32(1)
        used = kind if weight.ndim == 2 else "F32"
        for part, other in (kinds or {}).items():
            used = other if part in target and weight.ndim == 2 else used
        number = gguf.GGMLQuantizationType[used]
        raw = gguf.quants.quantize(weight, number)
        writer.add_tensor(target, raw, raw_dtype=number)
        held[name] = gguf.quants.dequantize(raw, number).reshape(weight.shape)
        if permuted:
            held[name] = straight(held[name], rows)
        if family.startswith("gemma") and name.endswith("norm.weight"):
            held[name] = held[name] - np.float32(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def add(writer, key, value):
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def tokenizer_fields(source: Path, config: dict[str, Any], pre: str = "gpt-2") -> dict[str, Any]:
    """The fields of a checkpoint's byte-level or sentencepiece BPE."""
    content = json.loads((source / "tokenizer.json").read_text())
    settings = json.loads((source / "tokenizer_config.json").read_text())
    model = content["model"]
    vocab = dict(model["vocab"])
    added = {token["content"]: token for token in content["added_tokens"]}
    vocab |= {text: token["id"] for text, token in added.items()}
    tokens = [f"[PAD{i}]" for i in range(max(config["vocab_size"], max(vocab.values()) + 1))]
    types = [5] * len(tokens)
    for text, i in vocab.items():
        tokens[i], types[i] = text, 1
        if text in added:
            types[i] = 3 if added[text]["special"] else 4
    fields: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.chat_template": settings.get("chat_template"),
    }
    pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    if model["byte_fallback"]:
        scores = [0.0] * len(tokens)
        for rank, (left, right) in enumerate(pairs):
            scores[vocab[left + right]] = scores[vocab[left + right]] or -float(rank + 1)
        for i, text in enumerate(tokens):
            if len(text) == 6 and text.startswith("<0x"):
                types[i] = 6
        types[vocab["<unk>"]] = 2
        fields |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.unknown_token_id": vocab["<unk>"],
        }
    else:
        fields |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs],
        }
    for key in ("bos", "eos"):
        token = settings.get(f"{key}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            fields[f"tokenizer.ggml.{key}_token_id"] = vocab[token]
    return fields
