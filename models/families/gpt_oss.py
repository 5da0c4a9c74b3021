"""gpt-oss: experts in every layer, attention with sinks, every other layer within a window.

Source: arXiv 2508.10925; transformers `GptOssConfig`.
"""

from __future__ import annotations

import math

from edgetok.models.config.decoder import decoder_sizes, mixed_layers
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import EXPERTS, PRE_NORMS, Family, Stack, TensorSource, standard_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import ExpertLinear, Experts
from edgetok.models.operations import operations
from edgetok.models.ops import SWIGLU_ALPHA, SWIGLU_LIMIT
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
}
_THETA = 150000.0
_PLACES = {
    "gate": ("gate_up_proj", 0, 2),
    "up": ("gate_up_proj", 1, 2),
    "down": ("down_proj", 0, 1),
}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=8, head_dim=64)
    config.expect("hidden_act", "silu")
    config.expect("swiglu_alpha", SWIGLU_ALPHA)
    config.expect("swiglu_limit", SWIGLU_LIMIT)
    attention_bias = config.flag("attention_bias", True)
    top = config.integer("num_experts_per_tok", 4, high=32)
    config.expect("experts_per_token", top)  # an older key
    config.value("router_aux_loss_coef")  # of the training
    rope = _read_rope(config, sizes["head_dim"])
    config.expect("initial_context_length", rope.original_context_tokens)
    experts = Experts(
        experts=config.integer("num_local_experts", 128, high=1024),
        top=top,
        size=sizes["intermediate_size"],
        router_bias=True,
        bias=True,
    )
    window = config.integer("sliding_window", 128, high=1 << 28)
    layers = mixed_layers(config, window, lambda i: i % 2 == 0)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(mixer=Attention(window=layer.window, sinks=True), ffn=experts)
            for layer in layers
        ),
        ropes=(rope,),
        activation="clamped_swiglu",
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    names = {**PRE_NORMS, "router": "mlp.router", "sinks": "self_attn.sinks"}
    # Biases of experts get their names below.
    names |= {f"experts_{which}": f"mlp.experts.{which}" for which in _PLACES}
    tensors = standard_tensors(spec, names)
    for i in range(spec.num_layers):
        name = f"layers.{i}.sinks.weight"  # it is not a module's weight
        tensors[name] = TensorSource(tensors[name].name.removesuffix(".weight"))
    for op in operations(spec):
        if isinstance(op, ExpertLinear):
            tensors |= _expert_tensors(op)
    return Family(spec, tensors)


def _read_rope(config: ConfigReader, head_dim: int) -> RopeSpec:
    """Return the rotary embedding, which is scaled where the config does not mention it."""
    if config.mentions("rope_scaling") or config.mentions("rope_parameters"):
        return read_rope(config, head_dim, theta=_THETA)
    return RopeSpec(
        theta=config.number("rope_theta", _THETA, low=1.000001, high=1e15),
        rotary_dim=head_dim,
        scaling="yarn",
        factor=32.0,
        truncate=False,
        original_context_tokens=4096,
        attention_factor=1.0 + 0.1 * math.log(32.0),
    )


def _expert_tensors(op: ExpertLinear) -> dict[str, TensorSource]:
    """Sources of a stacked matrix and its bias.

    Checkpoints hold all experts' matrices in one tensor, by input, gate and up taking turns.
    Quantised ones read as if each were a tensor of its own, by output.
    """
    which = op.weight.rpartition("experts_")[2]
    stored, first, step = _PLACES[which]
    place = f"model.layers.{op.layer}.mlp.experts."
    weight = Stack(
        op.experts,
        op.outputs,
        place + stored,
        ((f"{place}{EXPERTS[which]}.weight", op.outputs, 0),),
        ((place + stored, op.inputs, first, step),),
    )
    bias = f"{place}{stored}_bias"
    return {
        f"{op.weight}.weight": TensorSource(place + stored, stack=weight),
        f"{op.weight}.bias": TensorSource(
            bias, stack=Stack(op.experts, op.outputs, bias, turned=((bias, 1, first, step),))
        ),
    }
