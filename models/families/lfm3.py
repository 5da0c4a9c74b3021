"""LFM3: LFM2 with seven taps, windows, a gate for each head and norms behind mixer and network.

Full attention rotates some of a head's dims, with frequencies of its own.

Source: transformers 5 `Lfm3Config`.
"""

from __future__ import annotations

from edgetok.errors import CheckpointError
from edgetok.models.config.decoder import decoder_sizes, layer_count
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_proportional_rope
from edgetok.models.families import lfm2
from edgetok.models.family import Family, fused_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.short_conv import MOST_TAPS, ShortConvolution
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 128000,
    "hidden_size": 2048,
    "intermediate_size": 7680,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-05,
    "bos_token_id": 124894,
    "eos_token_id": 124900,
}
_CONV, _SLIDING, _FULL = "conv", "sliding_attention", "full_attention"
_NAMES = {
    **lfm2.NAMES,
    "post_attention_norm": "post_operator_norm",
    "post_mlp_norm": "post_ffn_norm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o_proj": "self_attn.o_proj",
    "attn_gate": "self_attn.gate_proj",
}
_RENAMED = (("self_attn.g_proj.", "self_attn.gate_proj."),)


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=4, head_dim=128, norm_eps="norm_eps")
    config.expect("conv_bias", False)
    config.expect("hidden_act", "silu")
    bias = config.flag("attention_bias")
    gated = config.flag("use_attention_gate", True)
    window = config.integer("sliding_window", 256, high=1 << 28)
    taps = config.integer("conv_L_cache", 7, low=2, high=MOST_TAPS)
    mixers = {
        _CONV: ShortConvolution(taps=taps),
        _FULL: Attention(rope=0, gated_heads=gated),
        _SLIDING: Attention(rope=1, gated_heads=gated, window=window),
    }
    types = _layer_types(config)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec(mixer=mixers[kind]) for kind in types),
        ropes=_ropes(config, types, sizes["head_dim"]),
        post_norm=config.flag("use_sandwich_norm", True),
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
    )
    return Family(spec, fused_tensors(spec, lfm2.FUSED, _NAMES), renamed=_RENAMED)


def _layer_types(config: ConfigReader) -> tuple[str, ...]:
    """Return the kind of each layer's mixer."""
    count = layer_count(config)
    types = config.choices("layer_types", (_FULL, _SLIDING, _CONV), count)
    if types is not None:
        return types
    return tuple(
        _FULL if i % 4 == 2 else _SLIDING if i % 4 == 0 and i > 0 else _CONV for i in range(count)
    )


def _ropes(
    config: ConfigReader, types: tuple[str, ...], head_dim: int
) -> tuple[RopeSpec, RopeSpec]:
    """Return the embeddings of full and of sliding attention.

    A kind that no layer has needs no settings.
    """
    parameters = config.section("rope_parameters")
    sliding = RopeSpec(theta=1e4, rotary_dim=head_dim)
    if parameters is None:
        turning = 2 * int(0.5 * head_dim // 2)
        full = RopeSpec(theta=1e6, rotary_dim=head_dim, scaling="proportional", turning_dim=turning)
        return full, sliding
    ropes = []
    for kind, theta in ((_FULL, 1e6), (_SLIDING, 1e4)):
        own = parameters.section(kind)
        if own is not None:
            ropes.append(read_proportional_rope(config, own, head_dim, theta=theta))
        elif kind in types:
            raise CheckpointError(f"{parameters.where}: {kind} is missing, expected an object")
        else:
            ropes.append(sliding)
    parameters.finish()
    return ropes[0], ropes[1]
