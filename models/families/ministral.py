"""Ministral 8B: mistral whose layers slide as `layer_types` says.

Source: transformers `MinistralConfig`.
"""

from __future__ import annotations

from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import (
    Family,
    decoder_sizes,
    mixed_layers,
    read_activation,
    read_window,
    standard_tensors,
)
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=8)
    window = read_window(config, absent=4096)
    spec = DecoderSpec(
        **sizes,
        layers=mixed_layers(config, window, lambda _: window > 0),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
    )
    return Family(spec, standard_tensors(spec))
