"""Train codes and scales of one block to give the outputs of the original block.

    least over codes q and scales s of  |block_q,s(x) - block(x)|^2,  w = (q - z) s

where x comes from the quantised blocks before. Of the change, all, half, a quarter or nothing is
kept, whichever errs least on held-out windows. This is for models that do not fit in memory several
times; others are trained as a whole (`quantise/train_model.py`).

Source: arXiv 2309.05516 (AutoRound), 2004.10568 (AdaRound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from edgetok.converter.calibrate.block import Block
from edgetok.converter.quantise.trainable_matrix import (
    BATCH_TOKENS,
    LearnedMatrix,
    best_share,
    learn,
    mean_loss,
    split,
)
from edgetok.converter.quantised import Quantised


@dataclass(frozen=True, slots=True)
class Refined:
    """The result of training.

    Attributes:
        layers: by canonical name without the block; empty where the block did not get better.
        error_before: squared error of its output over squared output, on held-out windows.
        error_after: as above.
    """

    layers: dict[str, Quantised]
    error_before: float
    error_after: float


def refine_block(
    block: Block,
    hidden: Tensor,
    wanted: Tensor,
    stored: Mapping[str, Quantised],
    *,
    steps: int,
    advance: Callable[[], None],
    still: Mapping[str, Sequence[slice]] = MappingProxyType({}),
    threads: int = 1,
) -> Refined:
    """Learn the codes and scales of one block's layers.

    Args:
        block: with the quantised weights in it; stays as it is.
        hidden: [B, T, hidden_size] its input.
        wanted: the same shape, what the original block makes of it.
        stored: the layers that are quantised.
        steps: number of batches.
        advance: called after each.
        still: rows of some layers that stay as they are.
        threads: how many compute; the result does not depend on it.
    """
    matrices = {
        name: LearnedMatrix(layer, codes=layer.bits < 8, still=still.get(name, ()))
        for name, layer in stored.items()
    }
    given, judged = split(hidden)
    batch = max(1, BATCH_TOKENS // hidden.shape[1])
    size = float(wanted[given].square().mean())

    def weights() -> dict[str, Tensor]:
        return {name: matrix.weight() for name, matrix in matrices.items()}

    def error(weights: Mapping[str, Tensor], chosen: Tensor, lane: int) -> Tensor:
        result = block.with_weights(weights, hidden[chosen], chosen, lane=lane)
        return (result - wanted[chosen]).square().mean() / size

    @torch.no_grad()
    def judge() -> float:
        return mean_loss(partial(error, weights()), judged, batch, threads)

    before = judge()
    learn(
        matrices.values(),
        (),
        lambda chosen, lane: error(weights(), chosen, lane),
        given,
        steps=steps,
        batch=batch,
        advance=advance,
        threads=threads,
    )
    kept = {name: matrix.learned() for name, matrix in matrices.items()}

    def take(share: float) -> dict[str, Quantised]:
        return {name: matrix.take(kept[name], share) for name, matrix in matrices.items()}

    layers, after = best_share(take, judge, before)
    return Refined(layers or {}, before, after)
