"""SmolLM3: every fourth layer without rotary embedding.

Source: https://huggingface.co/blog/smollm3, arXiv 2501.18795; transformers `SmolLM3Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import (
    decoder_sizes,
    layer_count,
    mixed_layers,
    read_activation,
    read_window,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import Family, standard_tensors
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=4)
    interval = config.integer("no_rope_layer_interval", 4, high=4096)
    turned = config.switches("no_rope_layers", layer_count(config)) or tuple(
        (i + 1) % interval != 0 for i in range(layer_count(config))
    )
    window = read_window(config) if config.flag("use_sliding_window") else 0
    config.value("sliding_window")
    config.value("max_window_layers")  # left over from another family, nothing reads it
    layers = mixed_layers(config, window, lambda i: not turned[i])
    attention_bias = config.flag("attention_bias")
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(window=layer.window, rope=0 if turn else -1)
            for layer, turn in zip(layers, turned, strict=True)
        ),
        ropes=(read_rope(config, sizes["head_dim"], theta=2e6),),
        activation=read_activation(config),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias"),
    )
    return Family(spec, standard_tensors(spec))
