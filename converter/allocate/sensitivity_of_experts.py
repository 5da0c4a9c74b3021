"""Sensitivity of a layer's experts, whose matrices of one kind share a format.

The gradient with respect to the experts' result is that with respect to an expert's, times its
share of the token's. Experts are drawn as often as tokens reach them, so that the mean over those
drawn, times how many a token gets, is the sum over all.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import torch
from torch import Tensor

from edgetok.converter.allocate.sensitivity_of_ends import halves
from edgetok.converter.allocate.trial import Costs, Trial
from edgetok.converter.calibrate.block import Block
from edgetok.converter.calibrate.windows import spread
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise.experts import Routed, rows_of
from edgetok.converter.read.canonical_weights import CanonicalWeights

Key = TypeVar("Key")

_DRAWN = 8
_ROWS = 32  # of each expert's matrix
_STACKS = ("experts_gate", "experts_up", "experts_down")


def measure_experts(
    weights: CanonicalWeights,
    block: Block,
    inputs: Tensor,
    gradient: Tensor,
    window_tokens: int,
    trial: Trial,
) -> None:
    """Try every way to store the matrices of a block's experts.

    Args:
        weights: weights of the checkpoint, of which those of single experts are read.
        block: materialised.
        inputs: [tokens, hidden_size] of the block's `before_experts`.
        gradient: [tokens, hidden_size] with respect to the experts' result.
        window_tokens: how many tokens a window has.
        trial: takes the costs.
    """
    routed = Routed(block, inputs)
    judged = torch.zeros(len(inputs), dtype=torch.bool)
    judged[halves(len(inputs), window_tokens)[1]] = True
    pairs = routed.chosen.flatten().sort().values  # of tokens and experts, by expert
    drawn = Counter(pairs[torch.from_numpy(spread(len(pairs), _DRAWN))].tolist())
    totals = {name: Costs({}, {}) for name in _STACKS}
    for expert, times in drawn.items():
        each = _costs(weights, block, routed, expert, gradient, judged, trial)
        share = routed.chosen.shape[1] * times / _DRAWN
        for name, costs in each.items():
            _add(totals[name].kl, costs.kl, share)
            _add(totals[name].probes, costs.probes, share)
    for name, total in totals.items():
        full_name = f"layers.{block.index}.{name}"
        trial.kl[full_name], trial.probes[full_name] = total


def _add(total: dict[Key, float], costs: dict[Key, float], share: float) -> None:
    for key, value in costs.items():
        total[key] = total.get(key, 0.0) + share * value


def _costs(
    weights: CanonicalWeights,
    block: Block,
    routed: Routed,
    expert: int,
    gradient: Tensor,
    judged: Tensor,
    trial: Trial,
) -> dict[str, Costs]:
    """Costs of one expert's matrices, a mean over its tokens."""
    layer = f"layers.{block.index}."
    tokens = routed.tokens_of(expert)
    x, share = routed.of(expert)
    own = {}
    for name in _STACKS:
        rows = rows_of(routed.linear(name).outputs, expert)
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in block.names:
                stored = weights.tensor(f"{layer}{name}.{kind}", (rows.start, rows.stop))
                own[f"{name}.{kind}"] = torch.from_numpy(stored)
    behind = share * gradient[tokens]
    gradients = {"experts_down": behind}
    gradients |= routed.back(own, 0, x, behind @ own["experts_down.weight"])
    given = dict.fromkeys(_STACKS, x) | {"experts_down": routed.inner(own, 0, x)}
    late = judged[tokens]
    early = ~late
    if not late.any() or not early.any():  # too few to divide
        late = early = torch.ones_like(late)
    means: dict[int, Tensor] = {}
    found = {}
    for name, values in given.items():
        if id(values) not in means:
            hessian = gptq.Hessian(values.shape[1], trial.threads)
            hessian.add((values * share)[early])
            means[id(values)] = hessian.mean()
        found[name] = trial.costs(
            layer + name,
            own[f"{name}.weight"],
            values[late],
            gradients[name][late],
            means[id(values)].clone(),
            _ROWS,
        )
    return found
