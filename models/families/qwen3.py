"""Qwen3, dense: RMSNorm on the heads of queries and keys.

Source: arXiv 2505.09388; transformers `Qwen3Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, read_activation, upper_window_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=32, head_dim=128)
    attention_bias = config.flag("attention_bias")
    spec = DecoderSpec(
        **sizes,
        layers=upper_window_layers(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qk_norm="head",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    return Family(spec, standard_tensors(spec))
