"""OLMo 3: OLMo 2 with a window in three of four layers, which rotate without scaling.

Source: transformers `Olmo3Config`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, mixed_layers, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_layer_ropes, read_rope
from edgetok.models.family import SANDWICH_NORMS, Family, standard_tensors
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "sliding_window": 4096,
    "eos_token_id": 50279,
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    attention_bias = config.flag("attention_bias")
    window = config.integer("sliding_window", high=1 << 28)
    layers = mixed_layers(config, window, lambda i: (i + 1) % 4 != 0)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec(window=x.window, rope=1 if x.window else 0) for x in layers),
        ropes=_ropes(config, sizes["head_dim"]),
        activation=read_activation(config),
        pre_norm=False,
        post_norm=True,
        qk_norm="full",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    return Family(spec, standard_tensors(spec, SANDWICH_NORMS))


def _ropes(config: ConfigReader, head_dim: int) -> tuple[RopeSpec, RopeSpec]:
    """Return the embeddings of layers without and with a window.

    transformers 5 saves an object for each; a config with only one has it scaled in the first.
    """
    parameters = config.section("rope_parameters")
    if parameters is not None and parameters.has("full_attention"):
        return read_layer_ropes(config, head_dim, theta=5e5, local_theta=5e5)
    rope = read_rope(config, head_dim, theta=5e5)
    return rope, RopeSpec(theta=rope.theta, rotary_dim=rope.rotary_dim)
