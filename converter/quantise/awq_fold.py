"""Fold AWQ's scales into a decoder block.

The block's operations determine which layers share an input and which operation computes it. For
attention and a dense network:

    input_norm -> q_proj, k_proj, v_proj      pre_mlp_norm -> gate_proj, up_proj
    rows of v_proj -> o_proj                  rows of up_proj -> down_proj

Folding does not change the block's function, except for rounding to float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from edgetok.converter.calibrate.block import Block
from edgetok.converter.calibrate.windows import spread
from edgetok.converter.options import ConvertOptions
from edgetok.converter.quantise import awq, gptq
from edgetok.converter.quantise.recipe import Inputs, round_layers
from edgetok.converter.workers import side_by_side
from edgetok.converter.write.data_file import TensorFormat
from edgetok.errors import UnsupportedError
from edgetok.models.operations import expert_counts, makers, stages
from edgetok.models.ops import Attend, Linear, Norm, Op

_JUDGE_TOKENS = 4096
_SEARCH_ROWS = 128
_ALPHAS = awq.ALPHAS[::2]  # half as many as the paper tries: what follows evens them out
_WORTH_A_TRIAL = 0.98  # a smaller gain when rounding to nearest is none after all steps


def fold_block(
    block: Block,
    hidden: Tensor,
    formats: Mapping[str, TensorFormat],
    threads: int = 1,
    *,
    options: ConvertOptions | None = None,
) -> list[str]:
    """Search AWQ's scales for each stage of a block and fold them in.

    Args:
        block: materialised; its weights are replaced.
        hidden: [B, T, hidden_size] its input.
        formats: formats of each matrix, by full canonical name.
        threads: for rounding.
        options: options of the recipe whose further steps follow: scales are then searched on some
            of the outputs, and kept only where, all steps done, they lower the error on tokens that
            the search did not see. None: as the paper has it.

    Returns:
        Notes on what could not be folded.
    """
    notes = []
    experts = {
        name.removeprefix(f"layers.{block.index}.") for name in expert_counts(block.operations)
    }
    of_all = [stage for stage in block.stages if experts.isdisjoint(stage)]  # nothing else scales
    firsts = [stage[0] for stage in of_all]
    wanted, some = awq.SAMPLE_TOKENS, None
    if options is not None:
        wanted = _JUDGE_TOKENS
        windows = min(len(hidden), -(-_JUDGE_TOKENS // hidden.shape[1]))
        some = torch.from_numpy(spread(len(hidden), windows))
        hidden = hidden[some]
    tokens = hidden.shape[0] * hidden.shape[1]
    samples = {name: awq.Sample(tokens, wanted) for name in firsts}
    magnitudes = {name: awq.Magnitude(block.get(name + ".weight").shape[1]) for name in firsts}

    def see(name: str, x: Tensor) -> None:
        samples[name].add(x)
        magnitudes[name].add(x)

    block.observe(hidden, firsts, see, some)
    for stage in of_all:
        forms = [formats[f"layers.{block.index}.{name}"] for name in stage]
        if not all(form.quantised for form in forms):
            notes.append(f"awq: {', '.join(stage)} not scaled where one of them is not quantised")
            continue
        made = _makers(block, stage)
        if made is None:
            notes.append(f"awq: {', '.join(stage)} not scaled: no norm stands before them")
            continue
        weights = [block.get(name + ".weight") for name in stage]
        inputs = samples[stage[0]].inputs()
        if options is not None:
            weights = [_some_rows(weight) for weight in weights]
        choice = awq.search_scales(
            weights,
            inputs[: awq.SAMPLE_TOKENS] if options is None else inputs[::4],
            magnitudes[stage[0]].mean(),
            [awq.rounder(f.bits, f.group_size, not f.zeros) for f in forms],
            share=_share(made[0]),
            alphas=awq.ALPHAS if options is None else _ALPHAS,
            threads=threads,
        )
        if choice.alpha and options is not None:
            if choice.loss > _WORTH_A_TRIAL * choice.identity_loss:
                continue
            candidates = (torch.ones_like(choice.scales), choice.scales)
            losses = held_out_losses(weights, candidates, inputs, forms, options, threads)
            if not losses[1] < losses[0]:
                continue
        if choice.alpha:
            apply_scales(block, stage, choice.scales)
    return notes


def held_out_losses(
    weights: list[Tensor],
    candidates: Sequence[Tensor],
    inputs: Tensor,
    forms: list[TensorFormat],
    options: ConvertOptions,
    threads: int = 1,
) -> list[float]:
    """Return the outputs' error on every fourth token after calibrating on the others.

    Args:
        weights: [N_i, K] of each layer.
        candidates: scales [K] that could be folded in.
        inputs: [tokens, K].
        forms: bits and group size of each.
        options: whose steps round the weights.
        threads: how many candidates are tried at once.

    Returns:
        For each candidate the sum over layers of |(round(W diag(s)) diag(1 / s) - W) x|^2.
    """
    held_out = torch.arange(len(inputs)) % 4 == 3
    seen = gptq.Hessian(inputs.shape[1], threads)
    seen.add(inputs[~held_out])
    hessian = seen.mean()
    shared = Inputs(hessian, options)  # one factor serves all candidates
    inverses = {form.group_size: shared.inverse(form.group_size) for form in forms}

    def loss(scales: Tensor) -> float:
        result = round_layers(
            [weight * scales for weight in weights],
            (hessian / scales).div_(scales[:, None]),
            forms,
            options,
            inverses={group: inverse.folded(scales) for group, inverse in inverses.items()},
        )
        total = 0.0
        for weight, layer in zip(weights, result, strict=True):
            difference = torch.from_numpy(layer.dequantise()) / scales - weight
            errors = inputs[held_out] @ difference.T
            total += float(errors.square().sum(dtype=torch.float64))
        return total

    return side_by_side(threads, [functools.partial(loss, scales) for scales in candidates])


def _some_rows(weight: Tensor) -> Tensor:
    """Rows spread over the whole matrix, in which scales are searched."""
    return weight[:: -(-len(weight) // _SEARCH_ROWS)]


def apply_scales(block: Block, stage: tuple[str, ...], scales: Tensor) -> None:
    """Multiply the inputs of a stage's layers by `scales` [K] and divide what makes them by it.

    Raises:
        UnsupportedError: nothing makes them that could be divided.
    """
    made = _makers(block, stage)
    if made is None:
        raise UnsupportedError(f"{', '.join(stage)}: no norm stands before them")
    for name in stage:
        block.set(name + ".weight", block.get(name + ".weight") * scales)
    result, source = made
    maker = source.weight.removeprefix(f"layers.{block.index}.")
    if isinstance(source, Norm):
        block.set(maker + ".weight", block.get(maker + ".weight") / scales)
        return
    if isinstance(result, Attend):
        scales = awq.rows_of_values(scales, result.heads, result.kv_heads, result.head_dim)
    block.set(maker + ".weight", block.get(maker + ".weight") / scales[:, None])
    if maker + ".bias" in block.names:
        block.set(maker + ".bias", block.get(maker + ".bias") / scales)


def _makers(block: Block, stage: tuple[str, ...]) -> tuple[Op, Norm | Linear] | None:
    """See `operations.makers`."""
    first = f"layers.{block.index}.{stage[0]}"
    linears = next(group for group in stages(block.operations) if group[0].weight == first)
    return makers(block.operations, linears)


def _share(maker: Op) -> Callable[[Tensor], Tensor] | None:
    """Inputs that come from the same row of values have one scale."""
    if not isinstance(maker, Attend):
        return None
    return functools.partial(
        awq.share_across_queries,
        num_heads=maker.heads,
        num_kv_heads=maker.kv_heads,
        head_dim=maker.head_dim,
    )
