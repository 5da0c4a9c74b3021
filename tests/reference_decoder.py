"""A whole decoder in plain NumPy: the truth that backends are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.formats.checkpoint import Checkpoint
from edgetok.kernels_cpu import reference
from edgetok.models import DecoderSpec, Family, inv_freq

Array = npt.NDArray[Any]


def canonical_weights(family: Family, checkpoint: Checkpoint) -> dict[str, Array]:
    """The checkpoint's tensors under their canonical names, float32."""
    return {
        name: checkpoint.tensor(source.name, source.rows) + np.float32(source.add)
        for name, source in family.tensors.items()
    }


def forward(
    spec: DecoderSpec,
    weights: Mapping[str, Array],
    tokens: npt.ArrayLike,
    *,
    capacity_tokens: int | None = None,
    dtype: npt.DTypeLike = np.float64,
    attend: Callable[[int, Array, Array, Array], Array] | None = None,
) -> Array:
    """Logits of every position, without a cache.

    Args:
        spec: the decoder.
        weights: by canonical name (`tensor_shapes(spec)`); for a quantised model the dequantised.
        tokens: [T] ids.
        capacity_tokens: what chooses between longrope's factors; None: T.
        dtype: what everything is computed in.
        attend: instead of causal attention: from a layer's index, its queries [T, H, D], keys and
            values [T, KH, D] before their rotation to [T, H, D].

    Returns:
        [T, vocab_size].
    """
    ids = np.asarray(tokens)
    positions = np.arange(len(ids))
    frequencies = [inv_freq(rope, capacity_tokens or len(ids)) for rope in spec.ropes]
    w = {name: array.astype(dtype) for name, array in weights.items()}

    def linear(x: Array, name: str) -> Array:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def norm(x: Array, name: str) -> Array:
        weight = w.get(f"{name}.weight")
        return x if weight is None else reference.rms_norm(x, weight, spec.norm_eps)

    def heads(x: Array, prefix: str, which: str, count: int) -> Array:
        y = linear(x, f"{prefix}.{which}_proj")
        if which == "v":
            return y.reshape(len(ids), count, spec.head_dim)
        if spec.qk_norm == "full":
            y = norm(y, f"{prefix}.{which}_norm")
        y = y.reshape(len(ids), count, spec.head_dim)
        if spec.qk_norm == "head":
            y = norm(y, f"{prefix}.{which}_norm")
        return y

    x = w["embed_tokens.weight"][ids] * spec.embed_scale
    for i, layer in enumerate(spec.layers):
        prefix = f"layers.{i}"
        h = norm(x, f"{prefix}.input_norm")
        q = heads(h, prefix, "q", spec.num_heads)
        k = heads(h, prefix, "k", spec.num_kv_heads)
        v = heads(h, prefix, "v", spec.num_kv_heads)
        if attend is not None:
            a = attend(i, q, k, v)
        else:
            if layer.rope >= 0:
                factor = spec.ropes[layer.rope].attention_factor
                q = reference.rope(q, positions, frequencies[layer.rope], factor)
                k = reference.rope(k, positions, frequencies[layer.rope], factor)
            a = reference.attention(
                q, k, v, scale=spec.attn_scale, window=layer.window, cap=spec.attn_softcap
            )
        a = linear(a.reshape(len(ids), -1), f"{prefix}.o_proj")
        x = x + spec.residual_scale * norm(a, f"{prefix}.post_attention_norm")
        h = norm(x, f"{prefix}.pre_mlp_norm")
        gate, up = linear(h, f"{prefix}.gate_proj"), linear(h, f"{prefix}.up_proj")
        m = linear(reference.gated(gate, up, spec.activation), f"{prefix}.down_proj")
        x = x + spec.residual_scale * norm(m, f"{prefix}.post_mlp_norm")
    head = "embed_tokens" if spec.tied else "lm_head"
    logits = linear(norm(x, "final_norm"), head) * spec.logit_scale
    return reference.softcap(logits, spec.logit_softcap)
