"""Mistral 7B and its kin: llama with a sliding window on every layer.

Source: arXiv 2310.06825; transformers `MistralConfig`.
"""

from __future__ import annotations

from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import (
    Family,
    decoder_sizes,
    read_activation,
    read_window,
    standard_tensors,
    uniform_layers,
)
from edgetok.models.spec import DecoderSpec


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
