"""OLMo 2: norms only after attention and MLP, and over whole queries and keys.

Source: arXiv 2501.00656; transformers `Olmo2Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, read_activation, uniform_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import SANDWICH_NORMS, Family, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "eos_token_id": 50279,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    attention_bias = config.flag("attention_bias")
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        pre_norm=False,
        post_norm=True,
        qk_norm="full",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    return Family(spec, standard_tensors(spec, SANDWICH_NORMS))
