"""The canonical tensors of a decoder and their shapes before quantisation."""

from __future__ import annotations

from edgetok.models.operations import operations
from edgetok.models.spec import DecoderSpec


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Return every tensor that `spec` calls for, by canonical name, in order of execution.

    Linear layers are [N, K] with their `.bias` [N] after them; norms are [size]. `lm_head.weight`
    is missing where the head is tied to the embedding.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for op in operations(spec):
        shapes |= op.tensors
    if spec.tied:
        del shapes["lm_head.weight"]
    return shapes
