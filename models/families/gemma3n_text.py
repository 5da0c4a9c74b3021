"""Gemma 3n, text only: several residual streams, a low-rank path beside attention, sparse gates.

Layers share keys and values and have inputs of their own as those of Gemma 4 do. The table of these
inputs has rows for text alone; other tokens have its first.

Source: transformers `Gemma3nTextConfig`, arXiv 2301.13310, arXiv 2411.07501.
"""

from __future__ import annotations

from statistics import NormalDist

from edgetok.models.config.decoder import (
    decoder_sizes,
    layer_count,
    layer_inner,
    read_activation,
    sqrt_embed_scale,
)
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_layer_ropes
from edgetok.models.config.shared import sources_of_shared, unused_by_sharing
from edgetok.models.family import (
    INPUT_NAMES,
    SANDWICH_NORMS,
    Family,
    Stack,
    TensorSource,
    standard_tensors,
)
from edgetok.models.layers.altup import MOST_STREAMS, AltUp
from edgetok.models.layers.laurel import Laurel
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 262400,
    "hidden_size": 2048,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "sliding_window": 512,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_NAMES = {
    **SANDWICH_NORMS,
    **INPUT_NAMES,
    "altup_proj": "model.altup_projections",
    "altup_norm": "altup.router_norm",
    "altup_router": "altup.modality_router",
    "altup_predict": "altup.prediction_coefs",
    "altup_correct": "altup.correction_coefs",
    "altup_scale": "altup.correct_output_scale",
    "laurel_left": "laurel.linear_left",
    "laurel_right": "laurel.linear_right",
    "laurel_norm": "laurel.post_laurel_norm",
    **{f"altup_unembed_{i}": f"model.altup_unembed_projections.{i}" for i in range(MOST_STREAMS)},
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    count = layer_count(config)
    inner = layer_inner(config, count, 16384)
    sizes = decoder_sizes(config, tied=True, kv_heads=2, head_dim=256, largest=max(inner))
    sizes["attn_scale"] = 1.0  # queries are normed
    bias = config.flag("attention_bias")
    window = config.integer("sliding_window", high=1 << 28)
    types = config.choices("layer_types", (_SLIDING, _FULL), count)
    types = types or tuple(_SLIDING if (i + 1) % 5 else _FULL for i in range(count))
    shared = config.integer("num_kv_shared_layers", 15, low=0, high=count)
    sources = sources_of_shared(config, types, shared)
    rank = config.integer("laurel_rank", 64, high=1 << 16)
    streams = config.integer("altup_num_inputs", 4, low=2, high=MOST_STREAMS)
    config.expect("altup_active_idx", 0)
    config.value("altup_coef_clip")  # of the training: published coefficients are within it
    scaled = config.flag("altup_correct_scale", True)
    sparsity = _sparsity(config, count)
    rows = config.integer("vocab_size_per_layer_input", 262144, high=sizes["vocab_size"])
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(
                mixer=Laurel(
                    window=window if types[i] == _SLIDING else 0,
                    rope=int(types[i] == _SLIDING),
                    v_norm=True,
                    shares=sources[i],
                    rank=rank,
                ),
                ffn=AltUp(
                    inner=inner[i] if inner[i] != max(inner) else 0,
                    sparse=sparsity[i] > 0,
                    spread=NormalDist().inv_cdf(sparsity[i]) if sparsity[i] > 0 else 0.0,
                    scaled=scaled,
                ),
            )
            for i in range(count)
        ),
        ropes=read_layer_ropes(config, sizes["head_dim"], theta=1e6, local_theta=1e4),
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        post_norm=True,
        qk_norm="head",
        qkv_bias=bias,
        o_bias=bias,
        logit_softcap=config.optional_number("final_logit_softcapping", 30.0, low=1e-3) or 0.0,
        embed_scale=sqrt_embed_scale(config),
        per_layer_size=config.integer("hidden_size_per_layer_input", 256, high=1 << 16),
        streams=streams,
    )
    unscaled = {f"model.layers.{i}.{_NAMES['altup_scale']}" for i in range(count) if not scaled}
    unused = unused_by_sharing(sources)
    return Family(spec, _tensors(spec, rows), unused | unscaled)


def _sparsity(config: ConfigReader, count: int) -> tuple[float, ...]:
    """Return the share of gates that become 0 in each layer."""
    if not config.has("activation_sparsity_pattern"):
        return tuple(0.95 if i < 10 < count else 0.0 for i in range(count))
    if isinstance(config.value("activation_sparsity_pattern"), list | tuple):
        return config.numbers("activation_sparsity_pattern", count, low=0.0, high=0.9999)
    return (config.number("activation_sparsity_pattern", low=0.0, high=0.9999),) * count


def _tensors(spec: DecoderSpec, rows: int) -> dict[str, TensorSource]:
    tensors = standard_tensors(spec, _NAMES)
    each = f"{_NAMES['altup_proj']}.{{}}.weight"
    stack = Stack(spec.streams - 1, spec.hidden_size, each)
    tensors["altup_proj.weight"] = TensorSource(each, stack=stack)
    for i in range(spec.num_layers):
        name = f"layers.{i}.altup_scale.weight"
        if name in tensors:
            tensors[name] = TensorSource(f"model.layers.{i}.{_NAMES['altup_scale']}")
    if rows < spec.vocab_size:
        table = tensors["embed_per_layer.weight"].name
        pieces = ((0, rows), *[(0, 1)] * (spec.vocab_size - rows))
        tensors["embed_per_layer.weight"] = TensorSource(table, pieces=pieces)
    return tensors
