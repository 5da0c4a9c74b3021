"""Phi-3, Phi-3.5 and Phi-4-mini: fused projections, long and short RoPE factors.

Source: arXiv 2404.14219; transformers `Phi3Config`.
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
from edgetok.models.family import Family, fused_tensors
from edgetok.models.spec import DecoderSpec

_FUSED = {
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
}
# Names under which the long and short factors were published before transformers settled on one.
_ALIASES = {"su": "longrope", "yarn": "longrope"}

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 32000,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    for key in ("full_attn_mod", "interpolate_factor"):
        config.expect(key, 1)
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config, read_window(config)),
        ropes=(read_rope(config, sizes["head_dim"], share=1.0, aliases=_ALIASES),),
        activation=read_activation(config),
    )
    return Family(spec, fused_tensors(spec, _FUSED))
