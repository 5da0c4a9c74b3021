"""Helium: llama that rotates pairs of neighbours.

Source: https://kyutai.org/2025/04/30/helium.html; transformers `HeliumConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, read_activation, uniform_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, in_pairs, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-08,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=20, head_dim=128)
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"], theta=1e5),),
        activation=read_activation(config),
        qkv_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
    )
    return Family(spec, in_pairs(spec, standard_tensors(spec)))
