"""Sensitivity of what gives each layer an input of its own: a table of tokens, and a projection.

Both stand before the first layer. The gradients with respect to the inputs, which the layers left
behind, lead to both and further to the embedding. Of the table the rows of tokens that the text has
are rounded to nearest, as the conversion rounds them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.allocate.scope import fitting
from edgetok.converter.allocate.sensitivity_of_ends import halves
from edgetok.converter.allocate.trial import Trial
from edgetok.converter.calibrate.original_model import gather_rows
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise.recipe import rounder_of_ends
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.formats.layout import TensorFormat
from edgetok.models.layers.layer_input import input_operations
from edgetok.models.ops import PER_LAYER_TABLE, AddScaled, Embed, Linear, Norm


def measure_inputs(
    weights: CanonicalWeights,
    windows: Tokens,
    embedded: Tensor,
    gradient: Tensor,
    trial: Trial,
) -> Tensor:
    """Try every way to store the table and the projection.

    Args:
        weights: weights of the checkpoint.
        windows: [B, T] token ids.
        embedded: [B, T, hidden_size] the first layer's input.
        gradient: [B, T, layers * size] with respect to the inputs of all layers.
        trial: takes the costs.

    Returns:
        What the gradient with respect to `embedded` has to have in addition: [B, T, hidden_size].
    """
    ops = list(input_operations(weights.family.spec))
    (table,) = (op for op in ops if isinstance(op, Embed))
    (linear,) = (op for op in ops if isinstance(op, Linear))
    (norm,) = (op for op in ops if isinstance(op, Norm))
    (added,) = (op for op in ops if isinstance(op, AddScaled))
    g = gradient.flatten(0, 1)
    _table(weights, windows, table.scale * g, trial)
    x = embedded.flatten(0, 1)
    weight = torch.from_numpy(weights.tensor(f"{linear.weight}.weight"))
    factors = torch.from_numpy(weights.tensor(f"{norm.weight}.weight"))
    with torch.enable_grad():
        y = (x @ weight.T).requires_grad_()
        each = linear.scale * y.reshape(len(y), -1, norm.size)
        normed = torch.nn.functional.rms_norm(each, (norm.size,), factors, norm.eps)
        context = added.scale * normed.flatten(1)
    (behind,) = torch.autograd.grad(context, y, g)
    seen, held_out = halves(len(x), windows.shape[1])
    hessian = gptq.Hessian(x.shape[1], trial.threads)
    hessian.add(x[seen])
    costs = trial.costs(linear.weight, weight, x[held_out], behind[held_out], hessian.mean())
    trial.kl[linear.weight] = costs.kl  # whole models are probed without it
    return (behind @ weight).reshape(embedded.shape)


def _table(weights: CanonicalWeights, windows: Tokens, gradient: Tensor, trial: Trial) -> None:
    """Costs of the table, whose rows have the gradient [tokens, layers * size]."""
    known, at = np.unique(windows, return_inverse=True)
    rows = gather_rows(weights.pieces(f"{PER_LAYER_TABLE}.weight"), known).numpy()
    index = torch.from_numpy(at.reshape(-1))
    rounder = rounder_of_ends(trial.options)
    ways, zeros = [], not trial.options.symmetric
    for group in trial.scope.groups(rows.shape[1]):
        ways += [TensorFormat(bits, group, zeros=zeros) for bits in (2, 3, 4, 8)]
        ways.append(TensorFormat(8, group))
    costs = {}
    greatest = trial.greatest(PER_LAYER_TABLE)
    for form in fitting(ways, rows.shape[1], greatest, trial.options, trial.scope):
        change = torch.from_numpy(rounder(rows, form, threads=trial.threads).dequantise() - rows)
        moved = (change[index] * gradient).sum(1, dtype=torch.float64)
        costs[form] = 0.5 * float(moved.square().mean())
    trial.kl[PER_LAYER_TABLE] = costs
