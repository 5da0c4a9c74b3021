"""Arcee (AFM): llama with a network without a gate, of squared ReLU.

Source: https://www.arcee.ai/blog/deep-dive-afm-4-5b-the-first-arcee-foundational-model;
transformers `ArceeConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, layer_count
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.layers.plain_dense import PlainDense
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out, but for tokens beyond this vocabulary.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 2560,
    "intermediate_size": 18432,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    bias = config.flag("attention_bias")
    config.expect("hidden_act", "relu2")
    spec = DecoderSpec(
        **sizes,
        layers=(LayerSpec(ffn=PlainDense(activation="relu2")),) * layer_count(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
    )
    return Family(spec, standard_tensors(spec))
