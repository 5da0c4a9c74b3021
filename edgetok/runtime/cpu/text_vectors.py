"""A text's vector from what the last layer leaves of its tokens, for models of embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import ContextError
from edgetok.formats.artefact import Artefact
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]


def check_text(spec: DecoderSpec, tokens: int, block_tokens: int) -> None:
    """Refuse a text that is too long.

    Args:
        spec: the decoder.
        tokens: the text's length.
        block_tokens: most tokens that are computed at once.

    Raises:
        ContextError: it is longer than the trained length or, where each token sees all others,
            than a block.
    """
    if tokens > spec.context_tokens:
        raise ContextError(
            f"a text of {tokens:,} tokens, the model was trained for "
            f"{spec.context_tokens:,}; give shorter ones"
        )
    if spec.both_sides and tokens > block_tokens:
        raise ContextError(
            f"a text of {tokens:,} tokens, but this model computes a text at once, at most "
            f"{block_tokens:,} tokens; give shorter texts"
        )


def normed_sum(artefact: Artefact, spec: DecoderSpec, hidden: Floats) -> Floats:
    """Sum final_norm(x) over rows: [T, hidden_size] -> [hidden_size]."""
    weight = artefact.tensor("final_norm.weight")
    squares = np.mean(hidden * hidden, axis=1, keepdims=True)
    normed = hidden / np.sqrt(squares + np.float32(spec.norm_eps)) * weight
    return np.asarray(normed.sum(axis=0), np.float32)


def projected(artefact: Artefact, spec: DecoderSpec, pooled: Floats) -> Floats:
    """Multiply by the matrices behind the pooling: [hidden_size] -> [vector_size]."""
    for i in range(len(spec.vector_sizes)):
        pooled = artefact.tensor(f"vector_proj_{i}.weight").astype(np.float32) @ pooled
    return np.asarray(pooled, np.float32)
