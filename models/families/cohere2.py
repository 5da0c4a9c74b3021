"""Cohere 2 (Command R7B, Command A, Tiny Aya): attention and network side by side.

Both read one LayerNorm. Layers with a window rotate pairs of neighbours, the others not at all.

Source: arXiv 2504.00698; transformers `Cohere2Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, mixed_layers, read_activation, read_window
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, in_pairs, standard_tensors
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-05,
    "bos_token_id": 5,
    "eos_token_id": 255001,
}
# Of the code before transformers had the family; it reads none of them.
_UNUSED = (
    "layer_switch",
    "order_of_interleaved_layers",
    "position_embedding_type",
    "rotary_pct",
    "use_embedding_sharing",
    "use_gated_activation",
    "use_parallel_block",
    "use_parallel_embedding",
    "_sliding_window_pattern",
)


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, norm_eps="layer_norm_eps")
    for key in _UNUSED:
        config.value(key)
    config.expect("use_qk_norm", False)
    window = read_window(config, absent=4096)
    pattern = config.integer("sliding_window_pattern", 4, high=4096)
    layers = mixed_layers(config, window, lambda i: (i + 1) % pattern != 0)
    bias = config.flag("attention_bias")
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(window=layer.window, rope=0 if layer.window else -1) for layer in layers
        ),
        ropes=(read_rope(config, sizes["head_dim"]),),
        activation=read_activation(config),
        centred_norms=True,
        parallel=True,
        qkv_bias=bias,
        o_bias=bias,
        logit_scale=config.number("logit_scale", 0.0625, low=1e-9, high=1e9),
    )
    return Family(spec, in_pairs(spec, standard_tensors(spec)))
