"""Quantised matrices whose scales, and optionally codes, are trained; and the training loop.

    w = round(q - z + m) * s * exp(reach * l),  m and l are trained, both 0 at the start

Rounding passes gradients straight through, so a code moves once steps in its direction outweigh
those against it by half a code. Adam's second moment is kept over many batches for m: over few, the
size of a step follows the noise of a batch, and codes flip with it.

Source: trained rounding: arXiv 2004.10568 (AdaRound), 2309.05516 (AutoRound);
straight-through gradients: arXiv 1308.3432; a share of the change: arXiv 2109.01903, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.quantised import FLOAT16_MAX, Quantised, float16_scales
from edgetok.converter.workers import side_by_side

# Of Adam, relative to each vector's size and to each scale of 4 bits; in halves or doubles where
# the steps between codes are finer or coarser. At 2 bits 0.02 left 0.93 nats where 0.003 left 1.12.
RATE = 5e-3
# In codes. Over 300 batches at 2 bits 0.01 left 0.63 nats of stories260k, 0.02 0.50, 0.04 0.62.
CODE_RATE = 0.02
Learned = tuple[Tensor, Tensor | None]  # of one matrix: steps of scales, moves of codes

T = TypeVar("T")

# Windows of a batch are computed in so many lanes, each with modules of its own.
LANES = 2
Loss = Callable[[Tensor, int], Tensor]  # mean loss of some windows, given their indices, in a lane

BATCH_TOKENS = 1024  # twice as many took twice as long for 3 % less KL
_SHARES = (1.0, 0.5, 0.25)  # of what was learned
_WARM_UP = 10
_HELD_OUT = 8  # one window in so many


class LearnedMatrix:
    """One quantised matrix as a function of its trainable parameters.

    Attributes:
        scale_steps: [N, G] logarithms of the scales' factors, in units of 16 codes.
        moves: [N, G, g] how far codes went; None where they stay.
    """

    def __init__(self, stored: Quantised, *, codes: bool, still: Sequence[slice] = ()) -> None:
        """Begin with `stored`.

        Args:
            stored: the matrix.
            codes: whether its codes are trained, too.
            still: rows that stay as they are.
        """
        self._stored = stored
        self._still = still
        self._scales = torch.from_numpy(stored.scales.astype(np.float32))
        N, G = self._scales.shape
        self._width = stored.codes.shape[1]
        padding = G * stored.group_size - self._width
        levels = torch.nn.functional.pad(torch.from_numpy(stored.levels()), (0, padding))
        self._levels = levels.reshape(N, G, stored.group_size)
        zeros = torch.full((N, G), float(1 << (stored.bits - 1)))
        if stored.zeros is not None:
            zeros = torch.from_numpy(stored.zeros.astype(np.float32))
        self._low = -zeros[:, :, None]
        self._high = self._low + ((1 << stored.bits) - 1)
        self._reach = 2.0 ** (4 - stored.bits)
        self.scale_steps = torch.zeros_like(self._scales, requires_grad=True)
        # Levels of a table are not evenly spaced: its codes stay.
        codes = codes and stored.table is None
        self.moves = torch.zeros_like(self._levels, requires_grad=True) if codes else None

    def weight(self) -> Tensor:
        """[N, K]."""
        levels = self._levels
        if self.moves is not None:
            passed = self.moves - self.moves.detach()
            levels = self._rounded(self.moves.detach()) + passed
        # As groups times scales: the gradient of a scale is then a sum along one axis.
        factors = self._scales * (self.scale_steps * self._reach).exp()
        return (levels * factors[:, :, None]).reshape(len(levels), -1)[:, : self._width]

    @torch.no_grad()
    def restrain(self) -> None:
        """Keep codes within the range that still rounds to the first or the last code.

        And keep what is to stay: steps follow the sign of a gradient, however little it rests on.
        """
        for rows in self._still:
            self.scale_steps[rows] = 0
            if self.moves is not None:
                self.moves[rows] = 0
        if self.moves is not None:
            low, high = self._low - self._levels - 0.5, self._high - self._levels + 0.5
            self.moves.copy_(torch.minimum(torch.maximum(self.moves, low), high))

    def learned(self) -> Learned:
        """Return a copy of the trained parameters so far."""
        moves = None if self.moves is None else self.moves.detach().clone()
        return self.scale_steps.detach().clone(), moves

    @torch.no_grad()
    def take(self, learned: Learned, share: float) -> Quantised:
        """Apply a share of the change and return the weights as stored."""
        scale_steps, moves = learned
        factors = self._scales * (share * scale_steps * self._reach).exp()
        scales = float16_scales(factors.clamp_max(FLOAT16_MAX).numpy())
        result = torch.from_numpy(scales.astype(np.float32)) / self._scales
        self.scale_steps.copy_(result.log() / self._reach)
        codes = self._stored.codes
        if moves is not None and self.moves is not None:
            levels = self._rounded(share * moves)
            self.moves.copy_(levels - self._levels)
            flat = (levels - self._low).reshape(len(levels), -1)[:, : self._width]
            codes = flat.numpy().astype(np.uint8)
        return replace(self._stored, codes=codes, scales=scales)

    def _rounded(self, moves: Tensor) -> Tensor:
        return torch.minimum(torch.maximum((self._levels + moves).round(), self._low), self._high)


def split(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices of windows for training and for judging: all for both, if there are few."""
    every = torch.arange(len(windows))
    if len(every) < _HELD_OUT:
        return every, every
    judged = every % _HELD_OUT == _HELD_OUT - 1
    return every[~judged], every[judged]


def learn(
    matrices: Iterable[LearnedMatrix],
    others: Iterable[Tensor],
    loss: Loss,
    windows: Tensor,
    *,
    steps: int,
    batch: int,
    advance: Callable[[], None],
    threads: int = 1,
) -> None:
    """Train by the gradient of a loss over batches of windows, each window once per round.

    Args:
        matrices: the matrices that are trained.
        others: so do these, in units of their size.
        loss: see `Loss`.
        windows: indices of those to learn from.
        steps: number of batches.
        batch: windows in one.
        advance: called after each.
        threads: how many lanes are computed at once; the result does not depend on it.
    """
    matrices = list(matrices)
    slow = [*others, *(matrix.scale_steps for matrix in matrices)]
    moves = [matrix.moves for matrix in matrices if matrix.moves is not None]
    optimisers = [(torch.optim.Adam(slow, lr=RATE, betas=(0.9, 0.95)), RATE)]
    if moves:
        optimisers.append((torch.optim.Adam(moves, lr=CODE_RATE, betas=(0.9, 0.999)), CODE_RATE))
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []
    for step in range(steps):
        if len(order) < min(batch, len(windows)):
            order = torch.randperm(len(windows), generator=generator).tolist()
        chosen, order = windows[order[:batch]], order[batch:]
        shares = _in_lanes(partial(_gradients, loss, [*slow, *moves]), chosen, threads)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for optimiser, rate in optimisers:
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / _WARM_UP) * cosine
            optimiser.zero_grad()
        for tensor, *parts in zip([*slow, *moves], *shares, strict=True):
            used = [part for part in parts if part is not None]
            tensor.grad = sum(used[1:], used[0]) if used else None
        for optimiser, _ in optimisers:
            optimiser.step()
        for matrix in matrices:
            matrix.restrain()
        advance()


def _gradients(
    loss: Loss, tensors: list[Tensor], windows: Tensor, share: float, lane: int
) -> tuple[Tensor | None, ...]:
    """Gradients of a share of the loss."""
    with torch.enable_grad():
        result: tuple[Tensor | None, ...] = torch.autograd.grad(
            share * loss(windows, lane), tensors, allow_unused=True
        )
    return result


def mean_loss(loss: Loss, windows: Tensor, batch: int, threads: int = 1) -> float:
    """Return the mean loss over windows, given their indices, a batch at a time."""

    def value(part: Tensor, share: float, lane: int) -> float:
        with torch.no_grad():  # which is said for each thread
            return share * float(loss(part, lane))

    parts = torch.split(windows, batch)
    return math.fsum(
        len(part) * math.fsum(_in_lanes(value, part, threads)) for part in parts
    ) / len(windows)


def _in_lanes(work: Callable[[Tensor, float, int], T], windows: Tensor, threads: int) -> list[T]:
    """Call `work` with some of the windows, their share of all, and a lane of their own."""
    parts = torch.tensor_split(windows, min(LANES, len(windows)))
    return side_by_side(
        threads,
        [partial(work, part, len(part) / len(windows), i) for i, part in enumerate(parts)],
    )


def best_share(
    take: Callable[[float], T], judge: Callable[[], float], before: float
) -> tuple[T | None, float]:
    """Return the share of the training's change that errs least: all, half, a quarter or nothing.

    Args:
        take: takes a share, with which `judge` then computes.
        judge: the error on windows that were not learned from.
        before: that error with nothing of it.

    Returns:
        What `take` gave and its error; None and `before` where no share errs less.
    """
    best, least = None, before
    for share in _SHARES:
        result, after = take(share), judge()
        if after < least:
            best, least = result, after
    return best, least
