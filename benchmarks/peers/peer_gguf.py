"""A random-weight checkpoint as GGUF files, for llama.cpp and OpenVINO GenAI.

    PEER_PYTHON benchmarks/peers/peer_gguf.py CHECKPOINT OUT --types Q4_0 Q4_K_M

Runs in the peers' environment (gguf, llama-cpp-python, numpy). OUT/TYPE.gguf is written by the
`gguf` package at 16 bits and quantised by llama.cpp itself. Decoders of the families in
`ARCHITECTURES` with float16 weights, as `make_checkpoint.py` makes them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
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
ARCHITECTURES = {  # model_type -> llama.cpp's name
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "lfm2": "lfm2",
    "qwen3_5_text": "qwen35",
}
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")  # llama.cpp wants them in one tensor


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
    family, layers = config["model_type"], config["num_hidden_layers"]
    architecture = ARCHITECTURES[family]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    tensors = with_experts_together(read_tensors(checkpoint))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.get("rope_parameters") or config
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps") or config["norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(1)
    tokens = [f"<{i}>" for i in range(config["vocab_size"])]
    tokens[:3] = ["a", "b", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if family in ("llama", "lfm2") else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if family == "lfm2":
        attends = [i in config["full_attn_idxs"] for i in range(layers)]
        writer.add_head_count_kv([kv_heads if attend else 0 for attend in attends])
        writer.add_shortconv_l_cache(config["conv_L_cache"])
        writer.add_feed_forward_length(tensors["model.layers.0.feed_forward.w1.weight"].shape[0])
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_feed_forward_length(config["intermediate_size"])
    if family == "qwen3_moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if family == "qwen3_5_text":
        key_heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
        if key_heads != value_heads:  # llama.cpp orders the value heads otherwise then
            raise SystemExit(f"{key_heads} key and {value_heads} value heads, expected as many")
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
        writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(config["linear_key_head_dim"])
        writer.add_ssm_group_count(key_heads)
        writer.add_ssm_time_step_rank(value_heads)
        writer.add_ssm_inner_size(config["linear_value_head_dim"] * value_heads)
        writer.add_full_attention_interval(config["layer_types"].index("full_attention") + 1)
    if config.get("rope_scaling"):
        factors = rope_factors(config["rope_scaling"], config["rope_theta"], head_dim)
        writer.add_tensor("rope_freqs.weight", factors)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, layers)
    for name, value in tensors.items():
        if family == "llama" and ".q_proj." in name:
            value = interleaved(value, heads)
        elif family == "llama" and ".k_proj." in name:
            value = interleaved(value, kv_heads)
        elif name.endswith(".A_log"):
            value = -np.exp(value.astype(np.float32))
        elif "conv" in name and value.ndim == 3:  # one channel a group
            value = value[:, 0].astype(np.float32)
        elif family == "qwen3_5_text" and name.endswith("norm.weight") and "attn.norm" not in name:
            value = value.astype(np.float32) + 1
        target = names.get_name(name.replace(".dt_bias", ".dt_proj.bias"), (".weight", ".bias"))
        if target is None:
            raise SystemExit(f"{name}: llama.cpp has no name for it in {architecture}")
        # llama.cpp wants vectors in float32
        writer.add_tensor(target, value.astype(np.float32) if value.ndim == 1 else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_experts_together(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of single experts as one of [experts, N, K], in the place of the first."""
    result: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, value in tensors.items():
        if (one := _EXPERT.fullmatch(name)) is None:
            result[name] = value
            continue
        together = f"{one[1]}.{one[3]}"
        if int(one[2]) != len(experts.setdefault(together, [])):
            raise SystemExit(f"{name}: expected expert {len(experts[together])}")
        experts[together].append(value)
    return result | {name: np.stack(values) for name, values in experts.items()}


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
