"""Settings of Gemma 4 files: layers of two kinds, which have heads and rotations of their own.

A file has the larger head and rotation of full attention under the names that others use, and those
of sliding attention beside them. Rotary factors are 1 where a pair of dims turns and huge where it
does not.

Source: llama.cpp, `conversion/gemma.py` and `src/models/gemma4.cpp`; transformers 5
`Gemma4TextConfig`.
"""

from __future__ import annotations

import math
from typing import Any

from edgetok.errors import UnsupportedError
from edgetok.models.config.reader import ConfigReader

_SLIDING, _FULL = "sliding_attention", "full_attention"
_STANDS_STILL = 1e20  # a factor from here on


def gemma4(reader: ConfigReader, config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a Gemma 4 file's `config.json` that differ from other families'.

    Args:
        reader: of the architecture's fields.
        config: what all families have.

    Raises:
        UnsupportedError: experts, or layers of one kind that differ from each other.
    """
    if reader.optional_integer("expert_count", 0, low=0, high=1 << 12):
        raise UnsupportedError(
            f"{reader.where}: Gemma 4 with experts (expert_count) is not supported as a GGUF file; "
            "convert its safetensors"
        )
    count, vocab_size = config["num_hidden_layers"], config["vocab_size"]
    full_dim = config["head_dim"]
    dim = reader.integer("attention.key_length_swa", high=1 << 12)
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        reader.expect(key, dim)
    slides = reader.switches("attention.sliding_window_pattern", count)
    if slides is None:
        raise reader.unsupported("attention.sliding_window_pattern", None, "one switch a layer")
    kinds = [_SLIDING if own else _FULL for own in slides]
    heads = _of_kinds(reader, "attention.head_count_kv", kinds)
    shared = reader.integer("attention.shared_kv_layers", 0, low=0, high=count)
    inner, wide = _inner(reader, count, shared)
    own = {"head_dim": full_dim, "num_key_value_heads": heads[_FULL]}
    full_rope = {
        "rope_type": "proportional",
        "partial_rotary_factor": _share(reader, config["rope_scaling"]),
        "rope_theta": config["rope_theta"],
    }
    sliding_rope = {
        "rope_type": "default",
        "rope_theta": reader.number("rope.freq_base_swa", 1e4),
    }
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": inner,
        "use_double_wide_mlp": wide,
        "num_key_value_heads": heads[_SLIDING],
        "head_dim": dim,
        "layer_types": kinds,
        "per_layer_config": {str(i): own for i, kind in enumerate(kinds) if kind == _FULL},
        "num_kv_shared_layers": shared,
        "attention_k_eq_v": False,  # until a tensor that is missing says otherwise
        "sliding_window": reader.integer("attention.sliding_window", high=1 << 28),
        "hidden_size_per_layer_input": reader.integer(
            "embedding_length_per_layer_input", 0, low=0, high=1 << 16
        ),
        "vocab_size_per_layer_input": vocab_size,
        "final_logit_softcapping": reader.optional_number("final_logit_softcapping"),
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": {_SLIDING: sliding_rope, _FULL: full_rope},
    }


def _of_kinds(reader: ConfigReader, key: str, kinds: list[str]) -> dict[str, int]:
    """Return the number of each kind of layers, of which a file may have a list."""
    value = reader.value(key)
    if not isinstance(value, list):
        value = [reader.integer(key, high=1 << 12)] * len(kinds)
    found = {
        kind: {own for own, k in zip(value, kinds, strict=True) if k == kind} for kind in kinds
    }
    if any(len(own) != 1 for own in found.values()):
        raise reader.unsupported(key, value, "the same in all layers of a kind")
    numbers = {kind: int(own.pop()) for kind, own in found.items()}
    any_kind = next(iter(numbers.values()))
    return {kind: numbers.get(kind, any_kind) for kind in (_SLIDING, _FULL)}


def _inner(reader: ConfigReader, count: int, shared: int) -> tuple[int, bool]:
    """Return inner values of a network, and whether layers that share keys have twice as many."""
    key = "feed_forward_length"
    value = reader.value(key)
    if not isinstance(value, list):
        return reader.integer(key, high=1 << 22), False
    first = int(value[0])
    wide = shared > 0 and int(value[-1]) == 2 * first
    expected = [first] * (count - shared) + [(1 + wide) * first] * shared
    if value != expected:
        known = "one size, twice that in layers which share keys and values"
        raise reader.unsupported(key, value, known)
    return first, wide


def _share(reader: ConfigReader, scaling: dict[str, Any] | None) -> float:
    """Return the share of full attention's dims that are rotated."""
    factors = [] if scaling is None else scaling.get("short_factor", [])
    turning = factors.count(1.0)
    still = factors[turning:]
    if (
        not turning
        or factors[:turning] != [1.0] * turning
        or min(still, default=1e30) < _STANDS_STILL
    ):
        raise UnsupportedError(
            f"{reader.where}: rope_freqs.weight is not 1 for rotated dims and 1e30 for the "
            "others, as Gemma 4 has it; convert the original checkpoint"
        )
    share = turning / len(factors)
    # Whoever reads it rounds down.
    exact = int(share * len(factors)) == turning
    return share if exact else math.nextafter(share, 1.0)
