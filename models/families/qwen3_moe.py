"""Qwen3 with experts: Qwen3, in most layers with a router in the place of the dense network.

Source: arXiv 2505.09388; transformers `Qwen3MoeConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, expert_layers, read_activation, read_window
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.layers.experts import Experts
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=4)
    attention_bias = config.flag("attention_bias")
    window = read_window(config, absent=4096) if config.flag("use_sliding_window") else 0
    config.value("sliding_window")
    config.value("max_window_layers")  # transformers does not read it in this family
    experts = Experts(
        experts=config.integer(
            # As transformers 5 saves it.
            "num_local_experts" if config.has("num_local_experts") else "num_experts",
            128,
            high=1024,
        ),
        top=config.integer("num_experts_per_tok", 8, high=32),
        size=config.integer("moe_intermediate_size", 768, high=1 << 20),
        normed=config.flag("norm_topk_prob"),
    )
    spec = DecoderSpec(
        **sizes,
        layers=expert_layers(config, experts, window),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qk_norm="head",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    return Family(spec, standard_tensors(spec))
