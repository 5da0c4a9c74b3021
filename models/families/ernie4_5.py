"""ERNIE 4.5, dense: llama that rotates pairs of neighbours.

Source: https://yiyan.baidu.com/blog/publication/ERNIE_Technical_Report.pdf; transformers
`Ernie4_5Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, read_activation, uniform_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, in_pairs, standard_tensors
from edgetok.models.spec import DecoderSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=2, head_dim=128)
    bias = config.flag("use_bias")
    spec = DecoderSpec(
        **sizes,
        layers=uniform_layers(config),
        ropes=(read_rope(config, sizes["head_dim"], theta=5e5),),
        activation=read_activation(config),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )
    return Family(spec, in_pairs(spec, standard_tensors(spec)))
