"""Gemma: llama with norms stored less one, a scaled embedding and wide heads.

Source: arXiv 2403.08295; transformers `GemmaConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import (
    decoder_sizes,
    read_activation,
    sqrt_embed_scale,
    uniform_layers,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=16, head_dim=256)
    attention_bias = config.flag("attention_bias")
    # Releases of transformers differ in which of the two they believe.
    config.expect("hidden_activation", config.text("hidden_act", "gelu_pytorch_tanh"))
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config, absent="gelu_pytorch_tanh"),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        embed_scale=sqrt_embed_scale(config),
    )
    return Family(spec, standard_tensors(spec, norm_add=1.0))
