"""Granite 3, dense: llama with multipliers on embedding, residual, attention and logits.

Source: arXiv 2408.13359 (Power scheduler, muP parameters); transformers `GraniteConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, read_activation, uniform_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    sizes["attn_scale"] = config.number("attention_multiplier", 1.0, low=1e-9, high=1e9)
    attention_bias = config.flag("attention_bias")
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias"),
        embed_scale=config.number("embedding_multiplier", 1.0, low=1e-9, high=1e9),
        residual_scale=config.number("residual_multiplier", 1.0, low=1e-9, high=1e9),
        logit_scale=1.0 / config.number("logits_scaling", 1.0, low=1e-9, high=1e9),
    )
    return Family(spec, standard_tensors(spec))
