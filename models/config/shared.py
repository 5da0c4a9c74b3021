"""Layers that look at keys and values which an earlier layer of their kind stored."""

from __future__ import annotations

from collections.abc import Sequence

from edgetok.errors import CheckpointError
from edgetok.models.config.reader import ConfigReader


def sources_of_shared(config: ConfigReader, types: Sequence[str], shared: int) -> list[int]:
    """Return the layer at whose keys and values each looks; -1: its own.

    Args:
        config: for messages.
        types: kind of each layer.
        shared: how many layers at the end share those of the last layer of their kind before.

    Raises:
        CheckpointError: there is no such layer.
    """
    first = len(types) - shared
    sources = []
    for i, kind in enumerate(types):
        stores = [j for j in range(first) if types[j] == kind]
        if i >= first and not stores:
            raise CheckpointError(
                f"{config.where}: num_kv_shared_layers {shared} of {len(types)} leaves no layer "
                f"that stores keys for {kind}"
            )
        sources.append(stores[-1] if i >= first else -1)
    return sources


def unused_by_sharing(sources: Sequence[int]) -> frozenset[str]:
    """Return the tensors that layers which share keys and values have in checkpoints all the same.

    They are of the training. `sources` are those of `sources_of_shared`.
    """
    return frozenset(
        f"model.layers.{i}.self_attn.{module}.{suffix}"
        for i, source in enumerate(sources)
        if source >= 0
        for module in ("k_proj", "v_proj", "k_norm", "v_norm")
        for suffix in ("weight", "bias")
    )
