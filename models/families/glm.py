"""GLM-4 of 2024: half of each head rotates, in pairs of neighbours; gate and up are one matrix.

Source: arXiv 2406.12793; transformers `GlmConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgetok.models.config.decoder import decoder_sizes, read_activation, uniform_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import PRE_NORMS, Family, fused_tensors, in_pairs
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 0.00000015625,
    "eos_token_id": [151329, 151336, 151338],
}
_FUSED = {"mlp.gate_up_proj": ("gate_proj", "up_proj")}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    return glm(config, PRE_NORMS, post_norm=False)


def glm(config: ConfigReader, norms: Mapping[str, str], *, post_norm: bool) -> Family:
    """Describe a checkpoint whose norms are named so, and may stand behind each part, too."""
    sizes = decoder_sizes(config, kv_heads=2, head_dim=128)
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"], share=0.5),),
        activation=read_activation(config),
        post_norm=post_norm,
        qkv_bias=config.flag("attention_bias", True),
    )
    return Family(spec, in_pairs(spec, fused_tensors(spec, _FUSED, norms)))
