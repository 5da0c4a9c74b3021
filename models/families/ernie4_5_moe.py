"""ERNIE 4.5 with experts: a bias that only chooses, and shared experts as one network.

Source: https://yiyan.baidu.com/blog/publication/ERNIE_Technical_Report.pdf; transformers
`Ernie4_5_MoeConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import PRE_NORMS, Family, TensorSource, in_pairs, standard_tensors
from edgetok.models.layers.experts import Experts
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NAMES = {
    **PRE_NORMS,
    "router_choice": "mlp.moe_statics.e_score_correction_bias",
    "shared_gate_proj": "mlp.shared_experts.gate_proj",
    "shared_up_proj": "mlp.shared_experts.up_proj",
    "shared_down_proj": "mlp.shared_experts.down_proj",
}
# Of the training, and layers that guess further tokens.
_UNUSED = (
    "moe_capacity",
    "moe_gate",
    "moe_use_aux_free",
    "num_nextn_predict_layers",
    "output_router_logits",
    "router_aux_loss_coef",
)
_RENAMED = (("mlp.gate.moe_statics", "mlp.moe_statics"),)


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=4)
    config.expect("use_bias", False)
    for key in _UNUSED:
        config.value(key)
    config.number("moe_norm_min", 1e-12, low=0.0, high=1e-3)  # shares never sum to so little
    size = config.integer("moe_intermediate_size", 1536, high=1 << 20)
    experts = Experts(
        experts=config.integer("moe_num_experts", 64, high=1024),
        top=config.integer("moe_k", 6, high=32),
        size=size,
        choice_bias=True,
        shared_size=size * config.integer("moe_num_shared_experts", 2, low=0, high=64),
    )
    count = layer_count(config)
    first = config.integer("moe_layer_start_index", 1, low=0, high=4096)
    last = config.integer("moe_layer_end_index", -1, low=-1, high=4096)
    step = config.integer("moe_layer_interval", 1, high=4096)
    chosen = range(first, (count - 1 if last == -1 else last) + 1)
    spec = DecoderSpec(
        **sizes,
        layers=tuple(
            LayerSpec(ffn=experts if i in chosen and (i + 1) % step == 0 else None)
            for i in range(count)
        ),
        ropes=(read_rope(config, sizes["head_dim"], theta=5e5),),
        activation=read_activation(config),
    )
    tensors = in_pairs(spec, standard_tensors(spec, _NAMES))
    for name, source in tensors.items():
        if name.endswith("router_choice.weight"):  # not a module's weight, and a row
            stored = source.name.removesuffix(".weight")
            tensors[name] = TensorSource(stored, flat=True, columns=(0, 1))
    return Family(spec, tensors, renamed=_RENAMED)
