"""Granite 4: Mamba2 layers or attention, mostly without positions; experts beside a shared one.

The shared network is the only one in sizes without experts. The multipliers are Granite 3's.
Sources: transformers `GraniteMoeHybridConfig`; the layers arXiv 2405.21060.
"""

from __future__ import annotations

from edgetok.errors import CheckpointError
from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import PRE_NORMS, Family, Stack, TensorSource, fused_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import ExpertLinear, Experts
from edgetok.models.layers.mamba2 import Mamba2
from edgetok.models.layers.short_conv import MOST_TAPS
from edgetok.models.operations import operations
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NAMES = {
    **PRE_NORMS,
    "down_proj": "shared_mlp.output_linear",
    "shared_down_proj": "shared_mlp.output_linear",
    "router": "block_sparse_moe.router.layer",
    "mamba_conv": "mamba.conv1d",
    "mamba_norm": "mamba.norm",
    "mamba_out": "mamba.out_proj",
}
_FUSED = {
    "mamba.in_proj": ("mamba_z", "mamba_xbc", "mamba_dt"),
    "shared_mlp.input_linear": ("gate_proj", "up_proj", "shared_gate_proj", "shared_up_proj"),
}
# Parameters that are not a module's weight.
_ALONE = {
    "mamba_conv_bias": "mamba.conv1d.bias",
    "mamba_dt_bias": "mamba.dt_bias",
    "mamba_log_rate": "mamba.A_log",
    "mamba_skip": "mamba.D",
}
# Of the training, of how other kernels cut a prompt, or written without a reader.
_UNUSED = (
    "router_aux_loss_coef",
    "output_router_logits",
    "init_method",
    "mamba_chunk_size",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
)
_RENAMED = (
    ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear.weight"),
    ("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear.weight"),
    ("block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"),
)
# Layer types of transformers 4 and of 5, and how each writes 0 and infinity.
_MAMBA_TYPES = ("mamba", "linear_attention")
_ATTENTION_TYPES = ("attention", "full_attention")
_INFINITY = float("inf")
_NO_LIMITS = ([0.0, _INFINITY], (0.0, _INFINITY), [0.0, {"__float__": "Infinity"}])


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config)
    if sizes["head_dim"] * sizes["num_heads"] != sizes["hidden_size"]:
        raise CheckpointError(
            f"{config.where}: head_dim {sizes['head_dim']} is not hidden_size / "
            "num_attention_heads, the only one that the family has; remove head_dim"
        )
    sizes["attn_scale"] = config.number("attention_multiplier", 1.0, low=1e-9, high=1e9)
    expert_size = sizes["intermediate_size"]
    shared_size = config.integer("shared_intermediate_size", 1024, high=1 << 22)
    sizes["intermediate_size"] = shared_size
    for key in _UNUSED:
        config.value(key)
    config.expect("normalization_function", "rmsnorm")
    count = config.integer("num_local_experts", 8, low=0, high=1024)
    top = config.integer("num_experts_per_tok", 2, low=min(count, 1), high=32)
    experts = None
    if count:
        experts = Experts(experts=count, top=top, size=expert_size, shared_size=shared_size)
    attends = _attends(config)
    mamba = _mamba(config, sizes["hidden_size"])
    if not all(attends):
        config.expect("hidden_act", "silu")  # transformers has it behind the convolution, too
    ropes = _ropes(config, sizes["head_dim"])
    attention = Attention(rope=0 if ropes else -1)
    bias = config.flag("attention_bias")
    spec = DecoderSpec(
        **sizes,
        layers=tuple(LayerSpec(mixer=attention if one else mamba, ffn=experts) for one in attends),
        ropes=ropes,
        activation=read_activation(config),
        qkv_bias=bias,
        o_bias=bias,
        embed_scale=config.number("embedding_multiplier", 1.0, low=1e-9, high=1e9),
        residual_scale=config.number("residual_multiplier", 1.0, low=1e-9, high=1e9),
        logit_scale=1.0 / config.number("logits_scaling", 1.0, low=1e-9, high=1e9),
    )
    return Family(spec, _tensors(spec), renamed=_RENAMED)


def _ropes(config: ConfigReader, head_dim: int) -> tuple[RopeSpec, ...]:
    """Return the rotary embedding, if queries and keys have one."""
    kind = config.value("position_embedding_type")
    if kind not in (None, "nope", "rope"):
        raise config.unsupported("position_embedding_type", kind, "rope, nope or null")
    rope = read_rope(config, head_dim)
    return (rope,) if kind == "rope" else ()


def _attends(config: ConfigReader) -> list[bool]:
    """Read whether each layer is attention."""
    count = layer_count(config)
    types = config.choices("layer_types", (*_MAMBA_TYPES, *_ATTENTION_TYPES), count)
    return [False] * count if types is None else [kind in _ATTENTION_TYPES for kind in types]


def _mamba(config: ConfigReader, hidden_size: int) -> Mamba2:
    """Return the mixer of all layers without attention."""
    width = config.integer("mamba_expand", 2, high=64) * hidden_size
    heads = config.integer("mamba_n_heads", 128, high=1 << 12)
    config.expect("mamba_n_groups", 1)  # of several, the gated norm would be over each
    head_dim = width // heads
    if config.value("mamba_d_head") not in (None, "auto"):
        head_dim = config.integer("mamba_d_head", high=1 << 12)
    if heads * head_dim != width:
        raise CheckpointError(
            f"{config.where}: mamba_n_heads {heads} times mamba_d_head {head_dim} is not "
            f"mamba_expand * hidden_size {width}"
        )
    limit = config.value("time_step_limit")
    if limit not in (None, *_NO_LIMITS):
        raise config.unsupported("time_step_limit", limit, "0 and infinity")
    return Mamba2(
        heads=heads,
        groups=1,
        head_dim=head_dim,
        state_dim=config.integer("mamba_d_state", 256, high=1 << 12),
        taps=config.integer("mamba_d_conv", 4, low=2, high=MOST_TAPS),
        conv_bias=config.flag("mamba_conv_bias", True),
        bias=config.flag("mamba_proj_bias"),
    )


def _tensors(spec: DecoderSpec) -> dict[str, TensorSource]:
    """Return where tensors come from."""
    sources = fused_tensors(spec, _FUSED, {**_NAMES, **{name: name for name in _ALONE}})
    for canonical in sources:
        *layer, module, _ = canonical.split(".")
        if module in _ALONE:
            sources[canonical] = TensorSource(f"model.{'.'.join(layer)}.{_ALONE[module]}")
    for op in operations(spec):
        if not isinstance(op, ExpertLinear):
            continue
        which = op.weight.rpartition("experts_")[2]
        module, every = ("output", 1) if which == "down" else ("input", 2)
        stored = f"model.layers.{op.layer}.block_sparse_moe.{module}_linear.weight"
        first = op.outputs if which == "up" else 0
        stack = Stack(op.experts, op.outputs, stored, ((stored, every * op.outputs, first),))
        sources[f"{op.weight}.weight"] = TensorSource(stored, stack=stack)
    return sources
