"""Mistral 7B and its kin: llama with a sliding window on every layer.

Source: arXiv 2310.06825; transformers `MistralConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import (
    decoder_sizes,
    read_activation,
    read_window,
    uniform_layers,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
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
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config, read_window(config, absent=4096)),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
    )
    return Family(spec, standard_tensors(spec))
