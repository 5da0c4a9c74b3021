"""Gemma 3, text only: two rotary embeddings, of which the local one rotates the sliding layers.

EmbeddingGemma is one whose tokens see both sides. `sliding_window` then counts both together.

Source: arXiv 2503.19786, arXiv 2509.20354; transformers `Gemma3TextConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import (
    decoder_sizes,
    mixed_layers,
    read_activation,
    sqrt_embed_scale,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_layer_ropes
from edgetok.models.family import SANDWICH_NORMS, Family, standard_tensors
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=4, head_dim=256)
    sizes["attn_scale"] = config.number("query_pre_attn_scalar", 256.0, low=1e-3, high=1e9) ** -0.5
    attention_bias = config.flag("attention_bias")
    pattern = config.integer("sliding_window_pattern", 6, high=4096)
    config.expect("_sliding_window_pattern", pattern)
    window = config.integer("sliding_window", high=1 << 28)
    both_sides = config.flag("use_bidirectional_attention")
    if both_sides:
        window = window // 2 + 1
    layers = mixed_layers(config, window, lambda i: (i + 1) % pattern != 0)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec(window=x.window, rope=1 if x.window else 0) for x in layers),
        ropes=read_layer_ropes(config, sizes["head_dim"], theta=1e6, local_theta=1e4),
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        post_norm=True,
        qk_norm="head",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        attn_softcap=config.optional_number("attn_logit_softcapping", low=1e-3) or 0.0,
        logit_softcap=config.optional_number("final_logit_softcapping", low=1e-3) or 0.0,
        embed_scale=sqrt_embed_scale(config),
        both_sides=both_sides,
        pooling="mean" if both_sides else "last",
    )
    return Family(spec, standard_tensors(spec, SANDWICH_NORMS, norm_add=1.0))
