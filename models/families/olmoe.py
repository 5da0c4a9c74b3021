"""OLMoE: experts in every layer, RMSNorm on whole projections of queries and keys.

Source: arXiv 2409.02060; transformers `OlmoeConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.layers.experts import Experts
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "eos_token_id": 50279,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    attention_bias = config.flag("attention_bias")
    config.expect("clip_qkv", None)
    config.expect("head_dim", sizes["hidden_size"] // sizes["num_heads"])
    config.value("router_aux_loss_coef")  # of the training
    experts = Experts(
        experts=config.integer("num_experts", 64, high=1024),
        top=config.integer("num_experts_per_tok", 8, high=32),
        size=sizes["intermediate_size"],
        normed=config.flag("norm_topk_prob"),
    )
    spec = DecoderSpec(
        **sizes,
        layers=(LayerSpec(ffn=experts),) * layer_count(config),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        qk_norm="full",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    return Family(spec, standard_tensors(spec))
