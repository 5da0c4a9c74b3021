"""Qwen2 with experts and a shared one, which every token gets.

Source: arXiv 2407.10671, section 2.2.2; transformers `Qwen2MoeConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, expert_layers, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.layers.experts import Experts
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=16)
    # transformers 4 and 5 disagree about which layers slide.
    config.expect("use_sliding_window", False)
    for key in ("sliding_window", "max_window_layers", "layer_types"):
        config.value(key)
    experts = Experts(
        experts=config.integer("num_experts", 60, high=1024),
        top=config.integer("num_experts_per_tok", 4, high=32),
        size=config.integer("moe_intermediate_size", 1408, high=1 << 20),
        normed=config.flag("norm_topk_prob"),
        shared_size=config.integer("shared_expert_intermediate_size", 5632, high=1 << 20),
        shared_router=True,
    )
    spec = DecoderSpec(
        **sizes,
        layers=expert_layers(config, experts, 0),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qkv_bias=config.flag("qkv_bias", True),
    )
    return Family(spec, standard_tensors(spec))
