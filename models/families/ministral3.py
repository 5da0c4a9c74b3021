"""Ministral 3: mistral whose queries grow with the logarithm of their position.

Source: transformers 5 `Ministral3Config`.
"""

from __future__ import annotations

from edgetok.errors import CheckpointError
from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation, read_window
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "max_position_embeddings": 262144,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROWTH = "llama_4_scaling_beta"
_REPEATED = "max_position_embeddings"


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=8, head_dim=128)
    settings = config.section("rope_parameters") or config.section("rope_scaling")
    if settings is None:
        raise CheckpointError(f"{config.where}: rope_parameters is missing, expected an object")
    rope = read_rope(config, sizes["head_dim"], theta=1e6, others=(_GROWTH, _REPEATED))
    mixer = Attention(
        window=read_window(config),
        growth=settings.number(_GROWTH, low=0.0, high=1e3),
        growth_tokens=settings.integer("original_max_position_embeddings", high=1 << 28),
    )
    spec = DecoderSpec(
        **sizes,
        layers=(LayerSpec(mixer=mixer),) * layer_count(config),
        ropes=(rope,),
        activation=read_activation(config),
    )
    return Family(spec, standard_tensors(spec))
