"""The steps of `--method auto`, and how one layer's weights go through them.

    fold      AWQ's scales, kept only if held-out text errs less             (awq_fold.py)
    search    more spans and zero points for each group, scales refitted     (gptq.py)
    gptq      each input's rounding error is compensated by later inputs     (gptq.py)
    descent   coordinate descent over the rounded weights, scales refitted   (coordinate_descent.py)
    tune      scales, norms and, if refined, codes of the whole model are    (train_model.py;
              trained against the original; a large model block by block      train_block.py)

Each step lowers a loss of its own and can be left out. `--method gptq` is that step alone, with the
paper's search for a span.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgetok.converter.options import ConvertOptions, Step
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.coordinate_descent import descend
from edgetok.converter.quantise.gptq import Inverse
from edgetok.converter.quantised import Quantised
from edgetok.converter.write.data_file import TensorFormat

SWEEPS = 2  # of coordinate descent: each costs as much as GPTQ, and the first gains most


class Inputs:
    """The Hessian of one stage's inputs, and what GPTQ makes of it for each group size."""

    def __init__(
        self, hessian: Tensor, options: ConvertOptions, inverses: dict[int, Inverse] | None = None
    ) -> None:
        """Take over `hessian` [K, K]; `inverses` are those known already, by group size."""
        self._hessian = hessian
        self._options = options
        self._inverses = inverses or {}

    def inverse(self, group_size: int) -> Inverse:
        """Return the inverse of the damped Hessian, or of its diagonal if GPTQ is left out."""
        if group_size not in self._inverses:
            damping, order = self._options.damping, self._options.order
            if "gptq" in self._options.steps:
                made = gptq.invert(self._hessian, group_size, damping=damping, order=order)
            else:
                made = gptq.invert_diagonal(self._hessian, group_size, damping=damping)
            self._inverses[group_size] = made
        return self._inverses[group_size]

    def damped(self, group_size: int) -> Tensor:
        """Return the damped Hessian [K, K] in the original order; `self` is unusable afterwards."""
        damping = self.inverse(group_size).damping
        self._inverses.clear()
        hessian, self._hessian = self._hessian, torch.empty(0)
        hessian.diagonal().add_(damping * hessian.diagonal().mean())
        return hessian


def rounder_of_ends(options: ConvertOptions) -> Callable[..., Quantised]:
    """Return the quantiser of the embedding and the head, which are not calibrated."""
    searched = options.method == "auto" and "search" in options.steps
    return gptq.quantise_searched if searched else rtn.quantise


def round_layers(
    weights: list[Tensor],
    hessian: Tensor,
    forms: list[TensorFormat],
    options: ConvertOptions,
    threads: int = 1,
    inverses: dict[int, Inverse] | None = None,
) -> list[Quantised]:
    """Round layers that have the same inputs.

    Args:
        weights: [N_i, K] of each.
        hessian: [K, K] of their inputs; it is overwritten.
        forms: bits and group size of each.
        options: which steps there are, damping and order.
        threads: for rounding.
        inverses: inverses of the Hessian by group size, where they are known already.
    """
    inputs = Inputs(hessian, options, inverses)
    steps: frozenset[Step] = options.steps
    result = [
        gptq.quantise(
            weight,
            inputs.inverse(form.group_size),
            form.bits,
            form.group_size,
            symmetric=not form.zeros,
            threads=threads,
            thorough="search" in steps,
        )
        for weight, form in zip(weights, forms, strict=True)
    ]
    if "descent" not in steps:
        return result
    damped = inputs.damped(forms[0].group_size)
    return [
        descend(weight, damped, start, sweeps=SWEEPS, threads=threads)
        for weight, start in zip(weights, result, strict=True)
    ]
