"""Checkpoints of newer families as llama.cpp's conversion stores them, written by `gguf`.

Each family's function returns metadata and tensors under the file's names, in float32; the rows,
splits and numbers are those of llama.cpp's `conversion/`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from tests.converter.read.gguf_writer import add, interleaved, tokenizer_fields

Weights = dict[str, np.ndarray]
Fields = dict[str, Any]


def write_conversion(
    source: Path, path: Path, kind: str = "F32", *, kinds: dict[str, str] | None = None,
    fields: Fields | None = None,
) -> Weights:  # fmt: skip
    """Write a checkpoint as a GGUF file and return the file's tensors before they are rounded.

    Args:
        source: a checkpoint of one safetensors file.
        path: the file.
        kind: type of matrices and stacks of them.
        kinds: another type for those whose name in the file holds a key of it.
        fields: more fields, or other values; None leaves one out.
    """
    config = json.loads((source / "config.json").read_text())
    weights = {n: w.astype(np.float32) for n, w in load_file(source / "model.safetensors").items()}
    arch, family_fields, tensors = _FAMILIES[config["model_type"]](config, weights)
    writer = gguf.GGUFWriter(path, arch)
    values = {f"{arch}.{key}": value for key, value in family_fields.items()}
    values |= tokenizer_fields(source, config) | (fields or {})
    for key, value in values.items():
        add(writer, key, value)
    for name, tensor in tensors.items():
        used = kind if tensor.ndim > 1 and name.endswith(".weight") else "F32"
        used = "F32" if re.search(r"conv|gate_inp|norm", name) or tensor.shape[-1] < 32 else used
        for part, other in (kinds or {}).items():
            used = other if part in name else used
        number = gguf.GGMLQuantizationType[used]
        raw = gguf.quants.quantize(np.ascontiguousarray(tensor), number)
        writer.add_tensor(name, raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def round_checkpoint(source: Path, kind: str, *parts: str, turned: bool = False) -> None:
    """Round a checkpoint's matrices whose names hold one of `parts` to what a type can hold.

    Rounding once more gives the same, so that a file of this type holds the checkpoint's values.
    """
    number = gguf.GGMLQuantizationType[kind]
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim < 2 or "bias" in name or not any(part in name for part in parts):
            continue
        values = weight.astype(np.float32)
        values = np.ascontiguousarray(values.swapaxes(-1, -2)) if turned else values
        values = gguf.quants.dequantize(gguf.quants.quantize(values, number), number)
        weights[name] = np.ascontiguousarray(values.swapaxes(-1, -2) if turned else values)
    save_file(weights, source / "model.safetensors", {"format": "pt"})


def _common(config: Fields) -> Fields:
    """Keys that llama.cpp writes for every model."""
    dim = config.get("head_dim")
    sizes = {"attention.key_length": dim, "attention.value_length": dim} if dim else {}
    eps = float(config.get("rms_norm_eps") or config["norm_eps"])
    return sizes | {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": eps,
        "vocab_size": config["vocab_size"],
        **_rope(config),
    }


def _rope(config: Fields) -> Fields:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    fields = {"rope.freq_base": float(scaling.get("rope_theta") or config["rope_theta"])}
    if scaling.get("rope_type") == "yarn":
        fields |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling["factor"]),
            "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        }
    return fields


def _renamed(arch: str, config: Fields, weights: Weights) -> Weights:
    number = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    result = {}
    for name, weight in weights.items():
        found = names.get_name(name, (".weight", ".bias"))
        assert found is not None, name
        result[found] = weight
    return result


def _stacked(weights: Weights, which: dict[str, str]) -> Weights:
    """Experts' matrices as stacks, and everything else.

    Args:
        weights: of the checkpoint; experts' names end in `.experts.7.NAME.weight`.
        which: the file's name for each NAME.
    """
    result: Weights = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, weight in weights.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\..*\.experts\.(\d+)\.(\w+)\.weight", name)
        joined = re.fullmatch(r"model\.layers\.(\d+)\..*\.experts\.(gate_up|down)_proj", name)
        if match:
            stack = f"blk.{match[1]}.{which[match[3]]}.weight"
            stacks.setdefault(stack, {})[int(match[2])] = weight
        elif joined and joined[2] == "down":
            result[f"blk.{joined[1]}.ffn_down_exps.weight"] = weight
        elif joined:
            gate, up = np.split(weight, 2, axis=1)
            result[f"blk.{joined[1]}.ffn_gate_exps.weight"] = gate
            result[f"blk.{joined[1]}.ffn_up_exps.weight"] = up
        else:
            result[name] = weight
    return result | {n: np.stack([w[i] for i in sorted(w)]) for n, w in stacks.items()}


def _split_stacks(weights: Weights) -> tuple[Weights, Weights]:
    stacks = {name: weight for name, weight in weights.items() if name.startswith("blk.")}
    return {n: w for n, w in weights.items() if n not in stacks}, stacks


def _qwen3_moe(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    names = {f"{which}_proj": f"ffn_{which}_exps" for which in ("gate", "up", "down")}
    rest, stacks = _split_stacks(_stacked(weights, names))
    fields = _common(config) | {
        "expert_count": config.get("num_experts") or config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }
    return "qwen3moe", fields, _renamed("qwen3moe", config, rest) | stacks


def _lfm2(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    fields = _common(config) | _attending(config) | {"shortconv.l_cache": config["conv_L_cache"]}
    size = int(2 * config.get("block_ff_dim", config["intermediate_size"]) / 3)
    size = int(config["block_ffn_dim_multiplier"] * size)
    multiple = config["block_multiple_of"]
    fields["feed_forward_length"] = multiple * ((size + multiple - 1) // multiple)
    return "lfm2", fields, _renamed("lfm2", config, _squeezed(weights))


def _lfm2_moe(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    names = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
    weights = {
        name.replace(".expert_bias", ".expert_bias.bias"): weight
        for name, weight in _squeezed(weights).items()
    }
    rest, stacks = _split_stacks(_stacked(weights, names))
    fields = (
        _common(config)
        | _attending(config)
        | {
            "shortconv.l_cache": config["conv_L_cache"],
            "expert_count": config["num_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "leading_dense_block_count": config["num_dense_layers"],
            "expert_gating_func": 2,
        }
    )
    return "lfm2moe", fields, _renamed("lfm2moe", config, rest) | stacks


def _bitnet(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    """Norms have the names of an earlier model in `gguf`'s map; the head is always tied."""
    own = {
        name.replace("model.layers", "blk").replace("self_attn.", "").replace("mlp.", ""): weight
        for name, weight in weights.items()
        if "sub_norm" in name
    }
    rest = {name: weight for name, weight in weights.items() if "sub_norm" not in name}
    fields = _common(config) | {
        "hidden_activation": config["hidden_act"],
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 1.0,
    }
    return "bitnet", fields, _renamed("bitnet", config, rest) | own


def _attending(config: Fields) -> Fields:
    heads = config["num_key_value_heads"]
    kinds = config["layer_types"]
    return {"attention.head_count_kv": [heads if kind == "full_attention" else 0 for kind in kinds]}


def _hunyuan(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    """The base of the rotary embedding is written as it is computed with."""
    rope = config.get("rope_parameters") or config["rope_scaling"]
    dim = config["head_dim"]
    theta = float(rope.get("rope_theta") or config["rope_theta"])
    fields = _common({**config, "rope_parameters": {"rope_theta": theta}}) | {
        "rope.freq_base": theta * rope["alpha"] ** (dim / (dim - 2)),
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scaling.original_context_length": 64,
    }
    return "hunyuan-dense", fields, _renamed("hunyuan-dense", config, weights)


def _glm4(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    """Gate and up stay one matrix; rows of queries and keys stay as they are."""
    rope = config.get("rope_parameters") or config
    turning = int(config["head_dim"] * rope["partial_rotary_factor"])
    fields = _common(config) | {"rope.dimension_count": turning}
    return "glm4", fields, _renamed("glm4", config, weights)


def _arcee(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    rows = {
        name: interleaved(weight, count)
        for which, count in heads.items()
        for name, weight in weights.items()
        if which in name
    }
    return "arcee", _common(config), _renamed("arcee", config, weights | rows)


def _ernie4_5(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    return "ernie4_5", _common(config), _renamed("ernie4_5", config, weights)


def _ernie4_5_moe(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    names = {f"{which}_proj": f"ffn_{which}_exps" for which in ("gate", "up", "down")}
    bias = "e_score_correction"
    weights = {
        name.replace(f"{bias}_bias", f"{bias}.bias"): weight[0] if bias in name else weight
        for name, weight in weights.items()
    }
    rest, stacks = _split_stacks(_stacked(weights, names))
    size, shared = config["moe_intermediate_size"], config["moe_num_shared_experts"]
    fields = _common(config) | {
        "expert_count": config["moe_num_experts"],
        "expert_used_count": config["moe_k"],
        "expert_feed_forward_length": size,
        "expert_shared_count": shared,
        "expert_shared_feed_forward_length": shared * size,
        "interleave_moe_layer_step": config["moe_layer_interval"],
        "leading_dense_block_count": config["moe_layer_start_index"],
    }
    return "ernie4_5-moe", fields, _renamed("ernie4_5-moe", config, rest) | stacks


def _cohere2(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    """Rows of queries and keys stay as they are; the head is the embedding."""
    fields = _common({**config, "norm_eps": config["layer_norm_eps"]})
    fields["attention.layer_norm_epsilon"] = fields.pop("attention.layer_norm_rms_epsilon")
    fields |= {
        "logit_scale": config["logit_scale"],
        "attention.sliding_window": config["sliding_window"],
        "rope.dimension_count": config["head_dim"],
        "rope.scaling.type": "none",
    }
    return "cohere2", fields, _renamed("cohere2", config, weights)


def _squeezed(weights: Weights) -> Weights:
    return {n: w.squeeze(1) if "conv.conv" in n else w for n, w in weights.items()}


def _gpt_oss(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    rest: Weights = {}
    own: Weights = {}
    for name, weight in weights.items():
        place = f"blk.{name.split('.')[2]}.ffn_{{}}_exps." if "experts" in name else ""
        if name.endswith("gate_up_proj"):
            turned = weight.swapaxes(1, 2)
            own[place.format("gate") + "weight"] = turned[:, ::2]
            own[place.format("up") + "weight"] = turned[:, 1::2]
        elif name.endswith("gate_up_proj_bias"):
            own[place.format("gate") + "bias"] = weight[:, ::2]
            own[place.format("up") + "bias"] = weight[:, 1::2]
        elif name.endswith("down_proj"):
            own[place.format("down") + "weight"] = weight.swapaxes(1, 2)
        elif name.endswith("down_proj_bias"):
            own[place.format("down") + "bias"] = weight
        elif name.endswith("sinks"):
            rest[name + ".weight"] = weight
        else:
            rest[name] = weight
    fields = _common(config) | {
        "attention.sliding_window": config["sliding_window"],
        "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["intermediate_size"],
    }
    return "gpt-oss", fields, _renamed("gpt-oss", config, rest) | own


def _qwen3_5(config: Fields, weights: Weights, arch: str = "qwen35") -> tuple[str, Fields, Weights]:
    """Heads of values stand by their place among those that share a key head."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before = 2 * keys * config["linear_key_head_dim"]

    def tiled(weight: np.ndarray, dim: int) -> np.ndarray:
        shape = (keys, values // keys, dim, *weight.shape[1:])
        return weight.reshape(shape).swapaxes(0, 1).reshape(weight.shape)

    result = {}
    for name, weight in _delta(weights).items():
        dim = config["linear_value_head_dim"] if re.search(r"qkv|conv|_z|out_proj", name) else 1
        if "linear_attn" not in name or "attn.norm" in name:
            result[name] = weight
        elif "out_proj" in name:
            result[name] = tiled(weight.T, dim).T
        elif "qkv" in name or "conv" in name:
            result[name] = np.concatenate([weight[:before], tiled(weight[before:], dim)])
        else:
            result[name] = tiled(weight, dim)
    fields = _common(config) | _delta_fields(config)
    fields["rope.dimension_sections"] = [2, 2, 2, 0]  # of the pairs that turn
    return arch, fields, _renamed(arch, config, result) | _guessing(config)


def _qwen3_5_moe(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    names = {f"{which}_proj": f"ffn_{which}_exps" for which in ("gate", "up", "down")}
    rest, stacks = _split_stacks(_stacked(weights, names))
    _, fields, tensors = _qwen3_5({**config, "intermediate_size": None}, rest, "qwen35moe")
    return "qwen35moe", fields | _expert_fields(config), tensors | stacks


def _qwen3_next(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    names = {f"{which}_proj": f"ffn_{which}_exps" for which in ("gate", "up", "down")}
    rest, stacks = _split_stacks(_stacked(_delta(weights), names))
    keys, dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
    own = {}
    for name in [name for name in rest if "in_proj_qkvz" in name]:
        weight = rest.pop(name)
        heads = weight.reshape(keys, -1, weight.shape[1])
        width = (heads.shape[1] - 2 * dim) // 2
        parts = np.split(heads, [dim, 2 * dim, 2 * dim + width], axis=1)
        q, k, v, z = (part.reshape(-1, weight.shape[1]) for part in parts)
        place = f"blk.{name.split('.')[2]}."
        own[f"{place}attn_qkv.weight"] = np.concatenate([q, k, v])
        own[f"{place}attn_gate.weight"] = z
    fields = _common(config) | _delta_fields(config) | _expert_fields(config)
    tensors = _renamed("qwen3next", config, rest) | own | stacks | _guessing(config)
    gates = [name for name in tensors if "gate_inp_shexp" in name]
    return "qwen3next", fields, tensors | {name: tensors[name][0] for name in gates}


def _expert_fields(config: Fields) -> Fields:
    """Sizes of experts of which one is shared."""
    return {
        "expert_count": config["num_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
    }


def _delta(weights: Weights) -> Weights:
    """Numbers of gated delta nets as llama.cpp computes with them."""
    result = {}
    for name, weight in weights.items():
        if name.endswith("A_log"):
            weight = -np.exp(weight)
        elif "conv1d" in name:
            weight = weight[:, 0]
        elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            weight = weight + np.float32(1)
        result[name.replace(".dt_bias", ".dt_proj.bias")] = weight
    return result


def _guessing(config: Fields) -> Weights:
    """Some of the tensors of a last block that guesses a further token."""
    size, place = config["hidden_size"], f"blk.{config['num_hidden_layers']}."
    return {
        f"{place}attn_norm.weight": np.ones(size, np.float32),
        f"{place}nextn.eh_proj.weight": np.ones((size, 2 * size), np.float32),
    }


def _delta_fields(config: Fields) -> Fields:
    rope = config.get("rope_parameters") or config
    heads = config["linear_num_value_heads"]
    kinds = config["layer_types"]
    return {
        "block_count": len(kinds) + 1,
        "nextn_predict_layers": 1,
        "rope.dimension_count": int(config["head_dim"] * rope["partial_rotary_factor"]),
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": heads,
        "ssm.inner_size": config["linear_value_head_dim"] * heads,
        "attention.recurrent_layers": [*(kind == "linear_attention" for kind in kinds), False],
        "full_attention_interval": config.get("full_attention_interval", 4),
    }


def _gemma4(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    """Heads and rotation of full attention under the common names; factors of dims that stay."""
    kinds, shared = config["layer_types"], config["num_kv_shared_layers"]
    slides = [kind == "sliding_attention" for kind in kinds]
    full = next(iter(config["per_layer_config"].values()))
    ropes, inner = config["rope_parameters"], config["intermediate_size"]
    dim, pairs = full["head_dim"], full["head_dim"] // 2
    turning = int(dim * ropes["full_attention"]["partial_rotary_factor"] / 2)
    own = {**config, "head_dim": dim, "rope_parameters": ropes["full_attention"]}
    heads = {True: config["num_key_value_heads"], False: full.get("num_key_value_heads")}
    fields = _common(own) | {
        "feed_forward_length": [inner] * (len(kinds) - shared) + [2 * inner] * shared,
        "attention.head_count_kv": [heads[own] or heads[True] for own in slides],
        "attention.key_length_swa": config["head_dim"],
        "attention.value_length_swa": config["head_dim"],
        "attention.shared_kv_layers": shared,
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": slides,
        "embedding_length_per_layer_input": config["hidden_size_per_layer_input"],
        "final_logit_softcapping": config["final_logit_softcapping"],
        "rope.freq_base_swa": float(ropes["sliding_attention"]["rope_theta"]),
        "rope.dimension_count": dim,
        "rope.dimension_count_swa": config["head_dim"],
    }
    named = {f"{n}.weight" if n.endswith("layer_scalar") else n: w for n, w in weights.items()}
    tensors = _renamed("gemma4", config, named)
    factors = np.array([1.0] * turning + [1e30] * (pairs - turning), np.float32)
    # Published files have keys of layers that look at another's.
    left_over = {
        f"blk.{len(kinds) - 1}.attn_k.weight": np.ones((dim, config["hidden_size"]), np.float32)
    }
    return "gemma4", fields, tensors | left_over | {"rope_freqs.weight": factors}


def _granitehybrid(config: Fields, weights: Weights) -> tuple[str, Fields, Weights]:
    """Mixers' numbers get an axis of length one; gate and up are tensors of their own."""
    rest, own = {}, {}
    experts = config["num_local_experts"]
    for name, weight in weights.items():
        place = f"blk.{name.split('.')[2]}.ffn_" if "layers" in name else ""
        if "input_linear" in name:
            end = "_exps" if "sparse" in name else "_shexp" if experts else ""
            gate, up = np.split(weight, 2, axis=-2)
            own[f"{place}gate{end}.weight"], own[f"{place}up{end}.weight"] = gate, up
        elif "shared_mlp.output_linear" in name:
            own[f"{place}down{'_shexp' if experts else ''}.weight"] = weight
        elif name.endswith(("A_log", "mamba.D")):
            rest[name] = (-np.exp(weight) if name.endswith("A_log") else weight)[:, None]
        elif "conv1d.weight" in name:
            rest[name] = weight[:, 0]
        elif name.endswith("mamba.norm.weight"):
            rest[name] = weight.reshape(config["mamba_n_groups"], -1)
        elif re.search(r"[qk]_proj", name):
            which = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            rest[name] = interleaved(weight, config[which])
        else:
            rest[name.replace(".dt_bias", ".dt_proj.bias")] = weight
    heads, attends = config["num_key_value_heads"], ("attention", "full_attention")
    scales = {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier"}
    scales |= {"residual_scale": "residual_multiplier", "logit_scale": "logits_scaling"}
    fields = _common(config) | {key: float(config[name]) for key, name in scales.items()} | {
        "attention.head_count_kv": [
            heads if kind in attends else 0 for kind in config["layer_types"]
        ],
        "context_length": 1 << 20,
        "rope.scaling.finetuned": False,
        "ssm.conv_kernel": config["mamba_d_conv"],
        "ssm.state_size": config["mamba_d_state"],
        "ssm.group_count": config["mamba_n_groups"],
        "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
        "ssm.time_step_rank": config["mamba_n_heads"],
        "expert_shared_feed_forward_length": config["shared_intermediate_size"],
    }  # fmt: skip
    if experts:
        used = config["num_experts_per_tok"]
        fields |= {"expert_count": experts, "expert_used_count": used}
    return "granitehybrid", fields, _renamed("granitehybrid", config, rest) | own


_FAMILIES = {
    "arcee": _arcee,
    "bitnet": _bitnet,
    "ernie4_5": _ernie4_5,
    "ernie4_5_moe": _ernie4_5_moe,
    "cohere2": _cohere2,
    "glm4": _glm4,
    "hunyuan_v1_dense": _hunyuan,
    "granitemoehybrid": _granitehybrid,
    "gemma4_text": _gemma4,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5_moe,
    "qwen3_next": _qwen3_next,
    "qwen3_moe": _qwen3_moe,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2_moe,
    "gpt_oss": _gpt_oss,
}
