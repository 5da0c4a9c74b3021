"""Seed-OSS: llama with biases on queries, keys and values.

Source: transformers `SeedOssConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, read_activation, uniform_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 155136,
    "hidden_size": 4096,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "max_position_embeddings": 524288,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=8, head_dim=128)
    config.value("residual_dropout")  # in training alone
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qkv_bias=config.flag("attention_bias", True),
        o_bias=config.flag("attention_out_bias"),
        mlp_bias=config.flag("mlp_bias"),
    )
    return Family(spec, standard_tensors(spec))
