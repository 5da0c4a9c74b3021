"""Gemma 2: norms before and after, soft caps, every other layer with a window.

Source: arXiv 2408.00118; transformers `Gemma2Config`.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgetok.models.config.decoder import (
    decoder_sizes,
    mixed_layers,
    read_activation,
    sqrt_embed_scale,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import SANDWICH_NORMS, Family, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    return with_norms(config, SANDWICH_NORMS, post_norm=True)


def with_norms(config: ConfigReader, norms: Mapping[str, str], *, post_norm: bool) -> Family:
    """Describe a checkpoint whose norms have these names, with or without those behind."""
    sizes = decoder_sizes(config, tied=True, kv_heads=4, head_dim=256)
    sizes["attn_scale"] = config.number("query_pre_attn_scalar", 256.0, low=1e-3, high=1e9) ** -0.5
    attention_bias = config.flag("attention_bias")
    window = config.integer("sliding_window", high=1 << 28)
    spec = DecoderSpec(
        **sizes,
        layers=mixed_layers(config, window, lambda i: i % 2 == 0),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        post_norm=post_norm,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        attn_softcap=config.optional_number("attn_logit_softcapping", 50.0, low=1e-3) or 0.0,
        logit_softcap=config.optional_number("final_logit_softcapping", 30.0, low=1e-3) or 0.0,
        embed_scale=sqrt_embed_scale(config),
    )
    config.value("hidden_act")  # an alias that older releases wrote and nothing reads
    return Family(spec, standard_tensors(spec, norms, norm_add=1.0))
