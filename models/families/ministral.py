"""Ministral 8B: mistral whose layers slide as `layer_types` says.

Source: transformers `MinistralConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, mixed_layers, read_activation, read_window
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.families.mistral import DEFAULTS
from edgetok.models.family import Family, standard_tensors
from edgetok.models.spec import DecoderSpec

__all__ = ["DEFAULTS", "read"]


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
