"""Gemma 4, text only: two head sizes, layers that share keys and values, inputs of each layer.

Full attention has heads, keys and a rotary embedding of its own. The last layers look at the keys
and values that the last layer of their kind before them stored. Values are normed. Each layer gets
an input from a table of the token (`layers/layer_input.py`), and a factor. Larger models have
experts beside the dense network (`layers/dense_and_experts.py`).

Source: transformers 5 `Gemma4TextConfig`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from edgetok.errors import CheckpointError
from edgetok.models.config.decoder import (
    decoder_sizes,
    layer_count,
    read_activation,
    sqrt_embed_scale,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_proportional_rope, read_rope_parameters
from edgetok.models.config.shared import sources_of_shared, unused_by_sharing
from edgetok.models.family import (
    INPUT_NAMES,
    SANDWICH_NORMS,
    Family,
    TensorSource,
    standard_tensors,
)
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.dense_and_experts import DenseAndExperts
from edgetok.models.layers.kind import FeedForward
from edgetok.models.layers.layer_input import DenseWithInput
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "sliding_window": 512,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_NAMES = {
    **SANDWICH_NORMS,
    **INPUT_NAMES,
    "layer_scale": "layer_scalar",
    "post_dense_norm": "post_feedforward_layernorm_1",
    "pre_experts_norm": "pre_feedforward_layernorm_2",
    "post_experts_norm": "post_feedforward_layernorm_2",
    "router": "router.proj",
    "router_norm": "router.scale",
    "router_scale": "router.per_expert_scale",
}
# Parameters that are not a module's weight.
_NO_MODULES = ("layer_scale", "router_norm", "router_scale")


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=4, head_dim=256)
    sizes["attn_scale"] = 1.0  # queries are normed
    directions = config.value("use_bidirectional_attention")
    if directions not in (None, "vision"):
        raise config.unsupported("use_bidirectional_attention", directions, "null or vision")
    bias = config.flag("attention_bias")
    mixers, first_shared = _mixers(config, sizes["num_heads"])
    wide = 2 if config.flag("use_double_wide_mlp") else 1
    inner, networks = sizes["intermediate_size"], _networks(config)
    per_layer = config.integer("hidden_size_per_layer_input", 256, low=0, high=1 << 16)
    if per_layer:
        config.expect("vocab_size_per_layer_input", sizes["vocab_size"])
    config.value("vocab_size_per_layer_input")  # of a table that there may be none of
    full = next((x for x in mixers if x.rope == 1), None)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(
                mixer=mixer,
                ffn=networks(inner=wide * inner if i >= first_shared and wide > 1 else 0),
            )
            for i, mixer in enumerate(mixers)
        ),
        ropes=_ropes(config, sizes["head_dim"], full.head_dim if full else sizes["head_dim"]),
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        post_norm=True,
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        logit_softcap=config.optional_number("final_logit_softcapping", low=1e-3) or 0.0,
        embed_scale=sqrt_embed_scale(config),
        per_layer_size=per_layer,
    )
    tensors = standard_tensors(spec, _NAMES, experts="experts")
    for name, source in tensors.items():
        if name.split(".")[-2] in _NO_MODULES:
            tensors[name] = TensorSource(source.name.removesuffix(".weight"))
    unused = unused_by_sharing([mixer.shares for mixer in mixers])
    return Family(spec, tensors, unused)


def _networks(config: ConfigReader) -> Callable[..., FeedForward]:
    """Return the feed-forward network of the layers, but for its inner values."""
    keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not config.flag("enable_moe_block"):
        for key in keys:
            config.value(key)  # of experts, which there are none of
        return DenseWithInput
    experts, top, size = (config.integer(key, high=1 << 20) for key in keys)
    return functools.partial(DenseAndExperts, experts=experts, top=top, size=size)


def _mixers(config: ConfigReader, heads: int) -> tuple[list[Attention], int]:
    """Return the mixer of each layer, and the first layer that shares keys and values."""
    count = layer_count(config)
    window = config.integer("sliding_window", high=1 << 28)
    types = config.choices("layer_types", (_SLIDING, _FULL), count)
    if types is None:
        types = (*(_SLIDING if (i + 1) % 6 else _FULL for i in range(count - 1)), _FULL)
    if types[-1] != _FULL:
        raise config.unsupported("layer_types", types[-1], f"{_FULL} as the last")
    shared = config.integer("num_kv_shared_layers", 0, low=0, high=count)
    first_shared = count - shared
    same = config.flag("attention_k_eq_v")
    kv_heads, dim = _full_sizes(config, types, same)
    if kv_heads and heads % kv_heads:
        raise CheckpointError(
            f"{config.where}: num_attention_heads {heads} is not a multiple of the full layers' "
            f"{kv_heads} key-value heads"
        )
    mixers = []
    for kind, source in zip(types, sources_of_shared(config, types, shared), strict=True):
        if kind == _SLIDING:
            mixer = Attention(window=window, rope=0, v_norm=True, shares=source)
        else:
            mixer = Attention(
                rope=1,
                kv_heads=kv_heads,
                head_dim=dim,
                v_norm=True,
                keys_as_values=same,
                shares=source,
            )
        mixers.append(mixer)
    return mixers, first_shared


def _full_sizes(config: ConfigReader, types: tuple[str, ...], same: bool) -> tuple[int, int]:
    """KV heads (0: as the others) and dims of a head of full attention.

    Releases before 5.2x wrote `global_head_dim` and `num_global_key_value_heads`, later ones an
    object for each such layer whose sizes are others than those of all layers.
    """
    dim = config.integer("global_head_dim", 512, high=1 << 12)
    kv_heads = config.optional_integer("num_global_key_value_heads", high=1 << 12)
    by_layer = config.section("per_layer_config")
    if by_layer is None:
        return (kv_heads or 0) if same else 0, dim
    found = set()
    for i, kind in enumerate(types):
        # Numbers have as many digits as the last one has.
        padded = f"{i:0{len(str(len(types) - 1))}}"
        key = padded if by_layer.has(padded) else str(i)
        own = by_layer.section(key)
        if kind != _FULL:
            by_layer.expect(key, None)
        elif own is None:  # its sizes are those of all layers
            found.add((0, config.integer("head_dim", 256, high=1 << 12)))
        else:
            dims = own.integer("head_dim", config.integer("head_dim", 256), high=1 << 12)
            found.add((own.optional_integer("num_key_value_heads", high=1 << 12) or 0, dims))
            own.finish()
    by_layer.finish()
    if len(found) != 1:
        raise config.unsupported("per_layer_config", sorted(found), "the same for all layers")
    return found.pop()


def _ropes(config: ConfigReader, dim: int, full_dim: int) -> tuple[RopeSpec, RopeSpec]:
    """Return the embeddings of sliding and of full attention."""
    parameters = config.section("rope_parameters")
    if parameters is None:
        turning = 2 * int(0.25 * full_dim // 2)
        full = RopeSpec(theta=1e6, rotary_dim=full_dim, scaling="proportional", turning_dim=turning)
        return RopeSpec(theta=1e4, rotary_dim=dim), full
    sliding_own, full_own = parameters.section(_SLIDING), parameters.section(_FULL)
    if full_own is None:
        raise CheckpointError(f"{parameters.where}: {_FULL} is missing, expected an object")
    sliding = RopeSpec(theta=1e4, rotary_dim=dim)
    if sliding_own is not None:
        sliding = read_rope_parameters(config, sliding_own, dim, theta=1e4)
    full = read_proportional_rope(config, full_own, full_dim, theta=1e6)
    parameters.finish()
    return sliding, full
