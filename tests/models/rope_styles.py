"""The two styles in which transformers writes a rotary embedding into config.json."""

from __future__ import annotations

from typing import Any

_BESIDE = ("original_max_position_embeddings", "partial_rotary_factor")


def as_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, whatever the style of `config`."""
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return config
    if "sliding_attention" in rope:
        local = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        if local != rope["rope_theta"]:  # a family with one base has no key for the other
            config["rope_local_base_freq"] = local
    rope = dict(rope)
    config["rope_theta"] = rope.pop("rope_theta")
    for key in _BESIDE:
        if key in rope and rope["rope_type"] in ("longrope", "default"):
            config[key] = rope.pop(key)
    return config | {"rope_scaling": None if rope == {"rope_type": "default"} else rope}


def as_transformers_5(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters`, with an object a layer type where there are two embeddings."""
    config = as_transformers_4(config)
    rope = dict(config.pop("rope_scaling", None) or {"rope_type": "default"})
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    rope["rope_theta"] = config.pop("rope_theta")
    rope |= {key: config.pop(key) for key in _BESIDE if key in config}
    if "rope_local_base_freq" in config:
        local = {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")}
        rope = {"full_attention": rope, "sliding_attention": local}
    return config | {"rope_parameters": rope}
