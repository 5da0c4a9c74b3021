"""Mixtral: Mistral with experts in every layer.

Source: arXiv 2401.04088; transformers `MixtralConfig`.
"""

from __future__ import annotations

from edgetok.models.config.decoder import decoder_sizes, layer_count, read_activation, read_window
from edgetok.models.config.reader import ConfigReader
from edgetok.models.config.rope import read_rope
from edgetok.models.family import PRE_NORMS, Family, standard_tensors
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import Experts
from edgetok.models.spec import DecoderSpec, LayerSpec

# What a `text_config` may leave out.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PLACE = "block_sparse_moe"
_EXPERTS = {"gate": "w1", "up": "w3", "down": "w2"}


def read(config: ConfigReader) -> Family:
    """Describe the checkpoint that `config` belongs to."""
    sizes = decoder_sizes(config, kv_heads=8)
    attention = Attention(window=read_window(config, absent=0))
    for key in ("router_aux_loss_coef", "router_jitter_noise"):
        config.value(key)  # of the training
    experts = Experts(
        experts=config.integer("num_local_experts", 8, high=1024),
        top=config.integer("num_experts_per_tok", 2, high=32),
        size=sizes["intermediate_size"],
    )
    spec = DecoderSpec(
        **sizes,
        layers=(LayerSpec(mixer=attention, ffn=experts),) * layer_count(config),
        ropes=(read_rope(config, sizes["head_dim"], theta=1e6),),
        activation=read_activation(config),
    )
    names = {**PRE_NORMS, "router": f"{_PLACE}.gate"}
    experts_at = f"{_PLACE}.experts"
    tensors = standard_tensors(spec, names, experts=experts_at, expert_names=_EXPERTS)
    return Family(spec, tensors, renamed=((".mlp.", f".{_PLACE}."),))
