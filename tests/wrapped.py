"""Tiny random multimodal checkpoints around the text models of `tests.tiny`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tiny import sizes, write_tokenizer

_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_CLIP = {**_SIGLIP, "model_type": "clip_vision_model"}
_PIXTRAL = {**_SIGLIP, "model_type": "pixtral", "head_dim": 16}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "mlp_ratio": 2,
    "out_hidden_size": 72,
    "patch_size": 14,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}
_GEMMA4: dict[str, Any] = {
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "audio_config": None,
    "image_token_id": 9,
    "video_token_id": 10,
    "boi_token_id": 5,
    "eoi_token_id": 6,
    "audio_token_id": 11,
    "boa_token_id": 7,
    "eoa_token_index": 8,
}
_MROPE = {"rope_type": "default", "mrope_section": [4, 4, 4]}


@dataclass(frozen=True)
class Wrapped:
    """A kind of multimodal checkpoint.

    Attributes:
        model_type: the wrapper's.
        model: its class in transformers.
        family: the text model's family, as `tests.tiny` has it.
        text_type: the text model's `model_type`; None: the family.
        text: settings of the text model beside the family's.
        outer: settings of the wrapper.
    """

    model_type: str
    model: str
    family: str
    text_type: str | None = None
    text: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)


_TOKENS = {"image_token_id": 9, "video_token_id": 10, "vision_start_token_id": 11}
WRAPPED = {
    "gemma3": Wrapped(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        "gemma3_text",
        outer={"vision_config": _SIGLIP, "image_token_index": 9, "mm_tokens_per_image": 4},
    ),
    "mistral3": Wrapped(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "mistral",
        outer={"vision_config": _PIXTRAL, "image_token_index": 9},
    ),
    "ministral3": Wrapped(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        "ministral3",
        outer={"vision_config": _PIXTRAL, "image_token_index": 9},
    ),
    "llava": Wrapped(
        "llava",
        "LlavaForConditionalGeneration",
        "llama",
        outer={"vision_config": _CLIP, "image_token_index": 9},
    ),
    "llava-qwen2": Wrapped(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "qwen2",
        outer={"vision_config": _SIGLIP, "image_token_index": 9, "video_token_index": 10},
    ),
    "llava_next": Wrapped(
        "llava_next",
        "LlavaNextForConditionalGeneration",
        "mistral",
        outer={"vision_config": _CLIP, "image_token_index": 9},
    ),
    "vipllava": Wrapped(
        "vipllava",
        "VipLlavaForConditionalGeneration",
        "llama",
        outer={"vision_config": _CLIP, "image_token_index": 9, "vision_feature_layers": [-1]},
    ),
    "internvl": Wrapped(
        "internvl",
        "InternVLForConditionalGeneration",
        "qwen3",
        outer={
            "vision_config": {**_SIGLIP, "model_type": "internvl_vision"},
            "image_token_id": 9,
        },
    ),
    "idefics2": Wrapped(
        "idefics2",
        "Idefics2ForConditionalGeneration",
        "mistral",
        outer={
            "vision_config": {**_SIGLIP, "model_type": "idefics2_vision"},
            "perceiver_config": {
                "hidden_size": 72,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 12,
                "num_key_value_heads": 1,
            },
            "image_token_id": 9,
        },
    ),
    "ovis2": Wrapped(
        "ovis2",
        "Ovis2ForConditionalGeneration",
        "qwen2",
        outer={
            "vision_config": {
                **_SIGLIP,
                "model_type": "siglip2_vision_model",
                "vocab_size": 16,
                "num_visual_indicator_tokens": 5,
            },
            "image_token_id": 9,
            "visual_indicator_token_ids": [10, 11, 12, 13, 14],
            "hidden_size": 72,
            "vocab_size": 307,
        },
    ),
    "idefics3": Wrapped(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        "llama",
        outer={
            "vision_config": {**_SIGLIP, "model_type": "idefics3_vision"},
            "image_token_id": 9,
        },
    ),
    "smolvlm": Wrapped(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        "llama",
        outer={
            "vision_config": {**_SIGLIP, "model_type": "smolvlm_vision"},
            "image_token_id": 9,
        },
    ),
    "qwen2_vl": Wrapped(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        "qwen2",
        "qwen2_vl_text",
        text={"rope_scaling": {**_MROPE, "type": "mrope"}, "hidden_size": 96},
        outer={"vision_config": {**_QWEN_VISION, "hidden_size": 96}, **_TOKENS},
    ),
    "qwen2_5_vl": Wrapped(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2",
        "qwen2_5_vl_text",
        text={"rope_scaling": _MROPE, "tie_word_embeddings": False, "hidden_size": 96},
        outer={"vision_config": {**_QWEN_VISION, "out_hidden_size": 96}, **_TOKENS},
    ),
    "qwen3_vl": Wrapped(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        "qwen3",
        "qwen3_vl_text",
        text={"rope_scaling": {**_MROPE, "mrope_interleaved": True}},
        outer={"vision_config": _QWEN_VISION, **_TOKENS},
    ),
    "qwen3_5": Wrapped(
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        "qwen3_5_text",
        text={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
            },
        },
        outer={"vision_config": _QWEN_VISION, **_TOKENS},
    ),
    "qwen3_5_moe": Wrapped(
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        "qwen3_5_moe_text",
        text={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 2, 2],
                "mrope_interleaved": True,
            },
        },
        outer={"vision_config": _QWEN_VISION, **_TOKENS},
    ),
    "gemma4": Wrapped(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        "gemma4_text",
        outer=_GEMMA4,
    ),
    # As Gemma-4-26B-A4B.
    "gemma4_experts": Wrapped(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        "gemma4_experts",
        "gemma4_text",
        outer=_GEMMA4,
    ),
    # Without inputs of each layer's own, whose vocabulary then does not matter.
    "gemma4_unified": Wrapped(
        "gemma4_unified",
        "Gemma4UnifiedForConditionalGeneration",
        "gemma4_text",
        "gemma4_unified_text",
        text={"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 400},
        outer={
            "vision_config": {"model_type": "gemma4_unified_vision"},
            "audio_config": None,
            **dict.fromkeys(("image_token_id", "video_token_id", "audio_token_id"), 9),
            **dict.fromkeys(("boi_token_id", "eoi_token_id", "boa_token_id"), 8),
            "eoa_token_index": 8,
        },
    ),
    "lfm2_vl": Wrapped(
        "lfm2_vl",
        "Lfm2VlForConditionalGeneration",
        "lfm2",
        outer={
            "vision_config": {
                **_SIGLIP,
                "model_type": "siglip2_vision_model",
                "num_patches": 16,
            },
            "image_token_id": 9,
            "projector_hidden_size": 32,
        },
    ),
    "lfm3_vl": Wrapped(
        "lfm3_vl",
        "Lfm3VlForConditionalGeneration",
        "lfm3",
        outer={
            "vision_config": {
                "model_type": "lfm3_vl_vision",
                "hidden_size": 32,
                "intermediate_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "patch_size": 2,
            },
            "image_token_id": 9,
            "video_token_id": 10,
            "vision_start_token_id": 5,
            "vision_end_token_id": 6,
            "projector_hidden_size": 32,
        },
    ),
    "voxtral": Wrapped(
        "voxtral",
        "VoxtralForConditionalGeneration",
        "llama",
        outer={
            "audio_config": {
                "model_type": "voxtral_encoder",
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "audio_token_id": 9,
        },
    ),
    "granite_speech": Wrapped(
        "granite_speech",
        "GraniteSpeechForConditionalGeneration",
        "granite",
        outer={
            "encoder_config": {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "dim_head": 16},
            "projector_config": {
                "model_type": "blip_2_qformer",
                "hidden_size": 32,
                "encoder_hidden_size": 32,
                "intermediate_size": 40,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "has_lora_adapter": False,
            "audio_token_index": 9,
        },
    ),
}

# Those that the installed transformers knows.
WRAPPED = {
    name: kind
    for name, kind in WRAPPED.items()
    if {kind.model_type, kind.text_type or kind.family} <= set(CONFIG_MAPPING)
}


def wrapped_checkpoint(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny wrapped checkpoint with random weights into `folder` and return it."""
    kind = WRAPPED[name]
    text = {**sizes(kind.family), **kind.text, "model_type": kind.text_type or kind.family}
    config = CONFIG_MAPPING[kind.model_type](text_config=text, **kind.outer)
    config.tie_word_embeddings = text["tie_word_embeddings"]
    torch.manual_seed(seed)
    model = getattr(transformers, kind.model)(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else 25
            noise = rng.standard_normal(tuple(parameter.shape)) / np.sqrt(width)
            parameter.copy_(torch.from_numpy(noise.astype(np.float16).astype(np.float32)))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def wrapped_logits(name: str, folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of the whole multimodal model for text."""
    kind = getattr(transformers, WRAPPED[name].model)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].numpy()
    if name == "granite_speech" and not transformers.__version__.startswith("4."):
        # In transformers 5 this wrapper leaves out what its text model does by itself.
        logits = logits / model.config.text_config.logits_scaling
    return logits


def as_saved_before(folder: Path) -> None:
    """Move the text model's settings beside `vision_config`, as older releases saved them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    path.write_text(json.dumps({**text, **config}))
