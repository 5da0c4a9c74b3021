"""LFM2 with experts: LFM2, behind its first layers with a router in the place of the dense network.

Source: arXiv 2511.23404; transformers `Lfm2MoeConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.families.lfm2 import FUSED, NAMES, read_attends
from edgetok.models.family import Family, TensorSource, fused_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import Experts
from edgetok.models.layers.short_conv import MOST_TAPS, ShortConvolution
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 65536,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PLACE = "feed_forward.experts"
_EXPERTS = {"gate": "w1", "up": "w3", "down": "w2"}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, tied=True, kv_heads=8, norm_eps="norm_eps")
    sizes["tied"] = config.flag("tie_embedding", sizes["tied"])  # the older key wins
    config.expect("conv_bias", False)
    config.expect("hidden_act", "silu")
    experts = Experts(
        experts=config.integer("num_experts", 32, high=1024),
        top=config.integer("num_experts_per_tok", 4, high=32),
        size=config.integer("moe_intermediate_size", 1792, high=1 << 20),
        score="sigmoid",
        normed=config.flag("norm_topk_prob", True),
        sum_eps=1e-6,
        factor=config.number("routed_scaling_factor", 1.0, low=1e-6, high=1e6),
        choice_bias=config.flag("use_expert_bias", True),
    )
    conv = ShortConvolution(taps=config.integer("conv_L_cache", 3, low=2, high=MOST_TAPS))
    dense = config.integer("num_dense_layers", 2, low=0, high=4096)
    layers = tuple(
        LayerSpec(mixer=Attention() if attends else conv, ffn=None if i < dense else experts)
        for i, attends in enumerate(read_attends(config))
    )
    spec = DecoderSpec(
        **sizes,
        layers=layers,
        ropes=(read_rope(config, sizes["head_dim"], theta=1e6),),
        qk_norm="head",
    )
    names = {**NAMES, "router": "feed_forward.gate", "router_choice": "feed_forward.expert_bias"}
    tensors = fused_tensors(spec, FUSED, names, experts=_PLACE, expert_names=_EXPERTS)
    for name, source in tensors.items():
        if name.endswith("router_choice.weight"):  # it is not a module's weight
            tensors[name] = TensorSource(source.name.removesuffix(".weight"))
    return Family(spec, tensors)
