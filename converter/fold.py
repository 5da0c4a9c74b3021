"""Folding AWQ's scales into a decoder block: which layers share an input, and what makes it.

    input_norm -> q_proj, k_proj, v_proj      pre_mlp_norm -> gate_proj, up_proj
    rows of v_proj -> o_proj                  rows of up_proj -> down_proj

Each leaves the block's function as it is, but for rounding to float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from torch import Tensor

from edgetok.converter import awq
from edgetok.converter.blocks import STAGES, Block
from edgetok.converter.layout import TensorFormat
from edgetok.models.spec import DecoderSpec

_NORMS = {"q_proj": "input_norm", "gate_proj": "pre_mlp_norm"}


def fold_block(
    block: Block,
    hidden: Tensor,
    spec: DecoderSpec,
    formats: Mapping[str, TensorFormat],
    threads: int = 1,
) -> list[str]:
    """Search AWQ's scales for each stage of a block and fold them in.

    Args:
        block: materialised; its weights are replaced.
        hidden: [B, T, hidden_size] its input.
        spec: the decoder.
        formats: of each matrix, by full canonical name.
        threads: for rounding.

    Returns:
        Notes on what could not be folded.
    """
    notes = []
    tokens = hidden.shape[0] * hidden.shape[1]
    firsts = [stage[0] for stage in STAGES]
    samples = {name: awq.Sample(tokens, awq.SAMPLE_TOKENS) for name in firsts}
    magnitudes = {name: awq.Magnitude(block.get(name + ".weight").shape[1]) for name in firsts}

    def see(name: str, x: Tensor) -> None:
        samples[name].add(x)
        magnitudes[name].add(x)

    block.observe(hidden, firsts, see)
    for stage in STAGES:
        forms = {formats[f"layers.{block.index}.{name}"] for name in stage}
        form = next(iter(forms))
        if len(forms) > 1 or not form.quantised:
            notes.append(f"awq: {', '.join(stage)} not scaled where one of them is not quantised")
            continue
        if stage[0] in _NORMS and not spec.pre_norm:
            notes.append(f"awq: {', '.join(stage)} not scaled: no norm stands before them")
            continue
        share = functools.partial(
            awq.share_across_queries,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
        )
        choice = awq.search_scales(
            [block.get(name + ".weight") for name in stage],
            samples[stage[0]].inputs(),
            magnitudes[stage[0]].mean(),
            awq.rounder(form.bits, form.group_size, not form.zeros, threads),
            share=share if stage[0] == "o_proj" else None,
        )
        if choice.alpha:
            apply_scales(block, stage, choice.scales, spec)
    return notes


def apply_scales(block: Block, stage: tuple[str, ...], scales: Tensor, spec: DecoderSpec) -> None:
    """Multiply the inputs of a stage's layers by `scales` [K] and divide what makes them by it."""
    for name in stage:
        block.set(name + ".weight", block.get(name + ".weight") * scales)
    if stage[0] in _NORMS:
        norm = _NORMS[stage[0]] + ".weight"
        block.set(norm, block.get(norm) / scales)
        return
    maker = "v_proj" if stage[0] == "o_proj" else "up_proj"
    if maker == "v_proj":
        scales = awq.rows_of_values(scales, spec.num_heads, spec.num_kv_heads, spec.head_dim)
    block.set(maker + ".weight", block.get(maker + ".weight") / scales[:, None])
    if maker + ".bias" in block.names:
        block.set(maker + ".bias", block.get(maker + ".bias") / scales)
