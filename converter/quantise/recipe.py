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
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.options import ConvertOptions, Step
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.coordinate_descent import descend
from edgetok.converter.quantise.gptq import Inverse
from edgetok.converter.quantise.level_table import LEVELS
from edgetok.converter.quantised import Quantised, joined
from edgetok.converter.workers import pieces_of, side_by_side
from edgetok.converter.write.data_file import TensorFormat

# Share of the mean diagonal that a head's Hessian gets for its use as an embedding: see
# docs/notes/quantisation.md.
TIED_DAMPING = 0.1
SWEEPS = 2  # of coordinate descent: each costs as much as GPTQ, and the first gains most

Rounder = Callable[..., Quantised]  # of [N, K] float32 and a format, with `threads`


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


def rounder_of_ends(options: ConvertOptions) -> Rounder:
    """Return the quantiser of an embedding, or of a head whose inputs are not known."""
    searched = options.method == "auto" and "search" in options.steps
    return gptq.quantise_searched if searched else rtn.nearest


def calibrates_head(options: ConvertOptions, form: TensorFormat | None = None) -> bool:
    """Return whether the output head is rounded like the layers, with a Hessian of its inputs.

    Args:
        options: with the steps.
        form: its format if that is known: at 8 bits SmolLM2's, a fifth of all weights, loses 0.0001
            nats without, and it would take as long as eight blocks.
    """
    fine = form is not None and form.bits >= 8
    return options.method == "auto" and "gptq" in options.steps and not fine


def rounder_of_head(hessian: Tensor, options: ConvertOptions, *, tied: bool) -> Rounder:
    """Return the quantiser of the output head.

    Args:
        hessian: [K, K] of its inputs.
        options: which steps there are, damping and order.
        tied: whether it is the embedding, too: errors then count in every direction.
    """
    if tied:
        hessian = hessian + torch.eye(len(hessian)) * (TIED_DAMPING * hessian.diagonal().mean())
    inverses: dict[int, Inverse] = {}

    def round_rows(
        weight: npt.NDArray[np.float32], form: TensorFormat, *, threads: int = 1
    ) -> Quantised:
        if form.group_size not in inverses:
            inverses[form.group_size] = Inputs(hessian.clone(), options).inverse(form.group_size)
        known = dict(inverses)  # which rounding may use up
        rows = torch.from_numpy(weight)
        return round_layers([rows], hessian.clone(), [form], options, threads, known)[0]

    return round_rows


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
        threads: number of ranges of rows that are rounded at once.
        inverses: inverses of the Hessian by group size, where they are known already.
    """
    inputs = Inputs(hessian, options, inverses)
    steps: frozenset[Step] = options.steps
    pieces = [
        (i, weight[rows], form)
        for i, (weight, form) in enumerate(zip(weights, forms, strict=True))
        for rows in pieces_of(len(weight))
    ]
    works = [
        partial(
            gptq.quantise,
            rows,
            inputs.inverse(form.group_size),
            form.bits,
            form.group_size,
            symmetric=not form.zeros,
            table=LEVELS if form.table else None,
            thorough="search" in steps,
        )
        for _, rows, form in pieces
    ]
    result = side_by_side(threads, works)
    if "descent" in steps:
        works.clear()  # they hold the inverses, which are as large as the Hessian
        damped = inputs.damped(forms[0].group_size)
        starts = zip(pieces, result, strict=True)
        further = [
            partial(descend, rows, damped, start, sweeps=SWEEPS) for (_, rows, _), start in starts
        ]
        result = side_by_side(threads, further)
    of_each: list[list[Quantised]] = [[] for _ in weights]
    for (i, _, _), rounded in zip(pieces, result, strict=True):
        of_each[i].append(rounded)
    return [joined(parts) for parts in of_each]
