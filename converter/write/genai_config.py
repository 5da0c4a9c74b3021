"""`genai_config.json`, with which onnxruntime-genai runs the same folder.

Source: onnxruntime-genai, documentation of genai_config.json (tried with release 0.18).
"""

from __future__ import annotations

from typing import Any

from edgetok.formats.layout import GRAPH_FILE, cache_head_dim
from edgetok.models.spec import DecoderSpec

GENAI_FILE = "genai_config.json"

# onnxruntime-genai allocates its cache for max_length tokens at once, so the file does not ask for
# the whole context of a long one; a program may set more.
_MAX_LENGTH = 4096


def genai_config(spec: DecoderSpec) -> dict[str, Any]:
    """Return the contents of `genai_config.json` for an artefact.

    Args:
        spec: the decoder.

    Returns:
        An object to be written as JSON. The model type is the generic decoder's, since all that
        distinguishes families is in the graph.
    """
    eos = list(spec.eos_tokens)
    pad = eos[0] if eos else 0
    return {
        "model": {
            "type": "decoder",
            "vocab_size": spec.vocab_size,
            "context_length": spec.context_tokens,
            "bos_token_id": pad if spec.bos_token is None else spec.bos_token,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "decoder": {
                "filename": GRAPH_FILE,
                "head_size": cache_head_dim(spec.head_dim),
                "hidden_size": spec.hidden_size,
                "num_attention_heads": spec.num_heads,
                "num_key_value_heads": spec.num_kv_heads,
                "num_hidden_layers": spec.num_layers,
                "session_options": {"provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(spec.context_tokens, _MAX_LENGTH),
            "past_present_share_buffer": True,
        },
    }
