"""The text model inside of a multimodal checkpoint, as a config of its own.

A wrapper (`...ForConditionalGeneration`) has the decoder's settings in `text_config` and those of
its other parts, which edgetok leaves out, beside it.

Source: transformers 4.57, the wrappers' configuration files. A saved `text_config` lists only what
differs from its class's defaults, so family files have those as `DEFAULTS`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.models.config.reader import ConfigReader, shown
from edgetok.models.config.rope import AXES
from edgetok.models.registry import FAMILIES, families

KEY: Final = "text_config"

# Wrappers that compute of a text what their text model computes; each is tested. Others may not:
# PaliGemma's prompts attend in both directions.
_WRAPPERS: Final = frozenset({
    "gemma3", "gemma3n", "gemma4", "gemma4_unified", "granite_speech", "idefics2", "idefics3",
    "internvl", "lfm2-vl", "lfm2_vl", "lfm3_vl", "llava", "llava_next", "llava_onevision",
    "mistral3", "ovis2", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "smolvlm",
    "vipllava", "voxtral",
})  # fmt: skip
# Settings of images, sound and of what joins them to the text.
_OTHER_PARTS: Final = re.compile(
    r"(vision|visual|image|video|audio|speech|projector|projection|multimodal|mm|alignment|adapter"
    r"|downsample|spatial|perceiver|high_res_vision|vq|encoder|qformer|pixel)_\w+"
    r"|(?!bos|eos|pad|sep|unk|decoder_start)\w+_token_(ids?|index)"
)
# Numbers of the text model, repeated; the projector's scale; windows of sound; an adapter that only
# sound switches on; the label that training skips.
_REPEATED: Final = frozenset(
    {"hidden_size", "vocab_size", "scale_factor", "window_size", "has_lora_adapter", "ignore_index"}
)
# What a text model takes from the wrapper, where it does not say so itself.
_INHERITED: Final = (
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SameText:
    """A text model under another name: with equal positions in all axes it is a plain family.

    Attributes:
        family: the plain one.
        defaults: where its own differ.
    """

    family: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


_QWEN2 = _SameText(
    family="qwen2",
    defaults={
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_window_layers": 80,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
)
_QWEN3 = _SameText(family="qwen3", defaults={"max_position_embeddings": 128000, "rope_theta": 5e6})
# Gemma 4 without inputs of each layer's own.
_GEMMA4 = _SameText(
    family="gemma4_text",
    defaults={
        "hidden_size_per_layer_input": 0,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
    },
)
_SAME: Final = {
    "gemma4_unified_text": _GEMMA4,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen3_vl_text": _QWEN3,
    # Older releases wrote the text model's settings beside `vision_config`.
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
}


def text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of a wrapper's text model; None where `config` is not a wrapper's.

    Raises:
        UnsupportedError: the text model is of no known family, or a setting is not understood.
        CheckpointError: a value is missing or of the wrong type.
    """
    model_type = config.get("model_type")
    if model_type is not None:
        model_type = ConfigReader(config).text("model_type")
    inner = config.get(KEY)
    if model_type in families() or (inner is None and model_type not in _SAME):
        return None
    if inner is None:
        inner, kind = config, str(model_type)
    else:
        kind = ConfigReader(inner, f"config.json: {KEY}").text("model_type")
        if model_type not in _WRAPPERS:
            raise UnsupportedError(
                f"config.json: model_type {shown(model_type)} wraps a text model in a way that "
                f"edgetok does not know; it knows {', '.join(sorted(_WRAPPERS))}"
            )
        _check_outer(config)
    values = {key: value for key, value in inner.items() if not _OTHER_PARTS.fullmatch(key)}
    same = _SAME.get(kind, _SameText(family=kind))
    if same.family not in families():
        raise UnsupportedError(
            f"config.json: {KEY}: model_type {shown(kind)} is not a family that edgetok "
            f"describes: {', '.join(families())}"
        )
    family = importlib.import_module(f"{FAMILIES}.{same.family}")
    defaults: Mapping[str, Any] = getattr(family, "DEFAULTS", {})
    for key in _INHERITED:
        if values.get(key) is None and config.get(key) is not None:
            values[key] = config[key]
    known = {**defaults, **same.defaults}
    rope = values.get("rope_parameters")  # where transformers 5 writes the base
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        known.pop("rope_theta", None)
    values = {**known, **values, "model_type": same.family}
    values.pop("architectures", None)
    if kind in _SAME:
        _plain_rope(values)
    return values


def _check_outer(config: Mapping[str, Any]) -> None:
    """Refuse settings beside `text_config` that may change what the text model computes."""
    reader = ConfigReader(config)
    for key in config:
        if key == KEY or key in _REPEATED or key in _INHERITED or _OTHER_PARTS.fullmatch(key):
            reader.value(key)
    reader.finish()


def _plain_rope(values: dict[str, Any]) -> None:
    """Take the axes out of the rotary embedding's settings, as text has one position in all."""
    for key in ("rope_scaling", "rope_parameters"):
        scaling = values.get(key)
        if scaling is None:
            continue
        if not isinstance(scaling, Mapping):
            raise CheckpointError(f"config.json: {key} is {shown(scaling)}, expected an object")
        rest = {k: v for k, v in scaling.items() if k not in AXES}
        for style in ("type", "rope_type"):
            if rest.get(style) == "mrope":
                rest[style] = "default"
        values[key] = rest
