"""A random-weight checkpoint as GGUF files, for llama.cpp and OpenVINO GenAI.

    PEER_PYTHON benchmarks/peer_gguf.py CHECKPOINT OUT --types Q4_0 Q4_K_M

Runs in the peers' environment (gguf, llama-cpp-python, numpy). OUT/TYPE.gguf is written by the
`gguf` package at 16 bits and quantised by llama.cpp itself. Decoders of the llama, qwen2 and qwen3
families with float16 weights, as `make_checkpoint.py` makes them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

TYPES = {  # llama_ftype of llama.h
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ4_XS": 30,
}
_LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Map every float16 tensor of a folder's safetensors files."""
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = np.memmap(path, np.uint8, "r")
        length = int(raw[:8].view("<u8")[0])
        for name, entry in json.loads(bytes(raw[8 : 8 + length])).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if entry["dtype"] != "F16":
                raise SystemExit(f"{path}: {name} is {entry['dtype']}, expected F16")
            result[name] = np.array(raw[begin:end]).view(np.float16).reshape(entry["shape"])
    return result


def gguf_name(name: str) -> str:
    """Return the name that llama.cpp gives to a tensor of a checkpoint."""
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_LINEAR[module]}.{kind}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp's llama family has them: 0, D/2, 1, D/2 + 1, ..."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def rope_factors(scaling: dict[str, float], theta: float, dim: int) -> np.ndarray:
    """Return llama.cpp's divisors of the frequencies for llama3 scaling: float32 [dim / 2]."""
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    factors = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * theta ** (i / dim)
        if wave < high:
            factors.append(1.0)
        elif wave > low:
            factors.append(scaling["factor"])
        else:
            smooth = scaling["original_max_position_embeddings"] / wave - scaling["low_freq_factor"]
            smooth /= scaling["high_freq_factor"] - scaling["low_freq_factor"]
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def write_f16(checkpoint: Path, path: Path) -> None:
    """The checkpoint as one 16-bit GGUF file."""
    config = json.loads((checkpoint / "config.json").read_text())
    family = config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(config["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1)
    tokens = [f"<{i}>" for i in range(config["vocab_size"])]
    tokens[:3] = ["a", "b", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if family == "llama" else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if config.get("rope_scaling"):
        factors = rope_factors(config["rope_scaling"], config["rope_theta"], head_dim)
        writer.add_tensor("rope_freqs.weight", factors)
    for name, value in read_tensors(checkpoint).items():
        target = gguf_name(name)
        if family == "llama" and ".attn_q." in target:
            value = interleaved(value, heads)
        elif family == "llama" and ".attn_k." in target:
            value = interleaved(value, kv_heads)
        # llama.cpp wants vectors in float32
        writer.add_tensor(target, value.astype(np.float32) if value.ndim == 1 else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, path: Path, kind: str) -> None:
    """One GGUF file from another, by llama.cpp."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.nthread = 2
    aside = path.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(aside).encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {source} to {kind}")
    aside.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--types", nargs="+", choices=list(TYPES), default=["Q4_0", "Q4_K_M"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = args.out / "F16.gguf"
    if not source.exists():
        write_f16(args.checkpoint, source.with_suffix(".partial"))
        source.with_suffix(".partial").rename(source)
    for kind in args.types:
        if not (path := args.out / f"{kind}.gguf").exists():
            quantise(source, path, kind)
        print(path, path.stat().st_size, flush=True)


if __name__ == "__main__":
    main()
