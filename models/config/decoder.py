"""Readers of a config, for family files: sizes, layers, windows, activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgetok.errors import CheckpointError
from edgetok.models.config.reader import ConfigReader
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import Experts
from edgetok.models.ops import Activation
from edgetok.models.spec import LayerSpec

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}


def decoder_sizes(
    config: ConfigReader,
    *,
    tied: bool = False,
    kv_heads: int | None = None,
    head_dim: int = 0,
    norm_eps: str = "rms_norm_eps",
    inner: int | None = None,
    largest: int | None = None,
) -> dict[str, Any]:
    """Return the fields of `DecoderSpec` that every family reads under the same keys.

    Args:
        config: read, and the keys are marked as understood.
        tied: default for an absent `tie_word_embeddings`.
        kv_heads: default for an absent `num_key_value_heads`; None: as many as heads.
        head_dim: default for an absent `head_dim`; 0: hidden_size / num_attention_heads.
        norm_eps: key of what norms add to the mean.
        inner: default for an absent `intermediate_size`; None: it is required.
        largest: of the sizes that `layer_inner` has read, where each layer may have its own.
    """
    hidden_size = config.integer("hidden_size", high=1 << 20)
    num_heads = config.integer("num_attention_heads", high=1 << 12)
    num_kv_heads = config.optional_integer("num_key_value_heads", kv_heads, high=1 << 12)
    dim = config.optional_integer("head_dim", head_dim or None, high=1 << 12)
    if dim is None:
        dim, rest = divmod(hidden_size, num_heads)
        if rest or not dim:
            raise CheckpointError(
                f"{config.where}: hidden_size {hidden_size} is not a multiple of "
                f"num_attention_heads {num_heads} and head_dim is not given; add head_dim"
            )
    if num_heads % (num_kv_heads or num_heads):
        raise CheckpointError(
            f"{config.where}: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    return {
        "family": config.text("model_type"),
        "vocab_size": config.integer("vocab_size", high=1 << 24),
        "hidden_size": hidden_size,
        "intermediate_size": largest or config.integer("intermediate_size", inner, high=1 << 22),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads or num_heads,
        "head_dim": dim,
        "context_tokens": config.integer("max_position_embeddings", high=1 << 28),
        "norm_eps": config.number(norm_eps, low=0.0, high=1.0),
        "tied": config.flag("tie_word_embeddings", tied),
        "attn_scale": dim**-0.5,
    }


def sqrt_embed_scale(config: ConfigReader) -> float:
    """sqrt(hidden_size), rounded to the type that the checkpoint was trained and is run in."""
    scale = np.float32(config.integer("hidden_size", high=1 << 20) ** 0.5)
    dtype = config.text("dtype", config.text("torch_dtype", "float32")).removeprefix("torch.")
    if dtype == "float16":
        return float(np.float16(scale))
    if dtype == "bfloat16":
        # Round half to even on the upper 16 bits of a positive float32.
        bits = int(scale.view(np.uint32))
        bits += 0x7FFF + (bits >> 16 & 1)
        return float(np.uint32(bits & 0xFFFF0000).view(np.float32))
    return float(scale)


def read_activation(
    config: ConfigReader, key: str = "hidden_act", absent: str = "silu"
) -> Activation:
    """Return the MLP's activation."""
    name = config.text(key, absent)
    if name not in _ACTIVATIONS:
        raise config.unsupported(key, name, ", ".join(sorted(_ACTIVATIONS)))
    return _ACTIVATIONS[name]


def layer_count(config: ConfigReader) -> int:
    """Return the number of decoder layers."""
    return config.integer("num_hidden_layers", high=4096)


def layer_inner(config: ConfigReader, count: int, absent: int) -> tuple[int, ...]:
    """Return `intermediate_size` of each layer: one number for all, `absent` if none, or a list."""
    value = config.value("intermediate_size")
    if not isinstance(value, list | tuple):
        return (config.integer("intermediate_size", absent, high=1 << 22),) * count
    sizes = config.numbers("intermediate_size", count, low=1, high=1 << 22)
    if not all(size.is_integer() for size in sizes):
        raise config.unsupported("intermediate_size", value, "a list of integers")
    return tuple(map(int, sizes))


def read_window(config: ConfigReader, absent: int | None = None) -> int:
    """`sliding_window` in tokens; 0 where it is null."""
    return config.optional_integer("sliding_window", absent, high=1 << 28) or 0


def uniform_layers(config: ConfigReader, window: int = 0) -> tuple[LayerSpec, ...]:
    """Layers that are all alike."""
    return (LayerSpec(window=window),) * layer_count(config)


def expert_layers(config: ConfigReader, experts: Experts, window: int) -> tuple[LayerSpec, ...]:
    """Layers of which each `decoder_sparse_step`-th has experts, but none of `mlp_only_layers`.

    Args:
        config: read, and the keys are marked as understood.
        experts: of those layers.
        window: of all layers' attention; 0 is none.
    """
    config.value("router_aux_loss_coef")  # of the training
    count = layer_count(config)
    step = config.integer("decoder_sparse_step", 1, high=4096)
    dense = config.value("mlp_only_layers") or []
    if not isinstance(dense, list | tuple) or not all(type(i) is int for i in dense):
        raise config.unsupported("mlp_only_layers", dense, "a list of layers")
    mixer = Attention(window=window)
    return tuple(
        LayerSpec(mixer=mixer, ffn=None if i in dense or (i + 1) % step else experts)
        for i in range(count)
    )


def mixed_layers(
    config: ConfigReader, window: int, sliding: Callable[[int], bool]
) -> tuple[LayerSpec, ...]:
    """Layers of which some have a sliding window.

    Args:
        config: its `layer_types`, where given, says which layers slide.
        window: window of the sliding layers, in tokens; 0 is none.
        sliding: whether layer i slides, where `layer_types` is absent.

    Raises:
        UnsupportedError: a layer type is neither full nor sliding attention.
        CheckpointError: not as many layer types as layers.
    """
    count = layer_count(config)
    types = config.choices("layer_types", ("full_attention", "sliding_attention"), count)
    slides = (
        sliding(i) if types is None else types[i] == "sliding_attention" for i in range(count)
    )
    return tuple(LayerSpec(window=window if slide else 0) for slide in slides)


def upper_window_layers(config: ConfigReader) -> tuple[LayerSpec, ...]:
    """Layers of which those from `max_window_layers` on slide if `use_sliding_window` says so."""
    window = read_window(config, absent=4096)
    first = config.integer("max_window_layers", 28, low=0)
    used = config.flag("use_sliding_window")
    return mixed_layers(config, window if used else 0, lambda i: i >= first)
