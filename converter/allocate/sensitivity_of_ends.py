"""Losses of ways to store the output head and the embedding, measured directly.

The head's KL is that of the distributions that it gives, on tokens that its rounding did not see.
Only the rows with the most probability are rounded: the others have next to no share in it. Of the
embedding, the rows of tokens that the text has are rounded, and their loss is taken like that of a
layer, by the gradient with respect to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.allocate.scope import WIDE, Scope, fitting
from edgetok.converter.calibrate.compare import head_logits
from edgetok.converter.calibrate.original_model import Original, gather_rows
from edgetok.converter.calibrate.windows import Tokens, spread
from edgetok.converter.options import ConvertOptions
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise.recipe import (
    Rounder,
    calibrates_head,
    rounder_of_ends,
    rounder_of_head,
)
from edgetok.converter.workers import pieces_of, side_by_side
from edgetok.formats.layout import TensorFormat
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]
Costs = dict[TensorFormat, float]
Head = Callable[[], Iterator[Floats]]

_HEAD_TOKENS = 512
_HEAD_ROWS = 8192
_TOKENS = 256  # of a piece: a few arrays of 4,096 logits each are then 8 MB
_SEED = 20


class Ends:
    """A trial of every way to store the head and the embedding."""

    def __init__(
        self,
        original: Original,
        options: ConvertOptions,
        greatest: Mapping[str, float],
        threads: int,
        scope: Scope = WIDE,
    ) -> None:
        self._scope = scope
        self._original, self._spec = original, original.weights.family.spec
        self._options, self._greatest, self._threads = options, greatest, threads
        self._rounder: Rounder = rounder_of_ends(options)

    def head(self, hidden: Tensor) -> tuple[Costs, Tensor]:
        """Return the head's losses, and the gradient of log p of tokens drawn from it.

        Args:
            hidden: [B, T, hidden_size] before the last norm, where the gradient is taken.
        """
        weights, spec = self._original.weights, self._spec
        norm = torch.from_numpy(weights.tensor("final_norm.weight"))
        start = hidden.detach().requires_grad_()
        normed = self._original.final_norm(start, norm)
        states = normed.detach().flatten(0, 1)
        seen, held_out = halves(len(states), hidden.shape[1])
        some = held_out[torch.from_numpy(spread(len(held_out), min(len(held_out), _HEAD_TOKENS)))]
        if calibrates_head(self._options):
            hessian = gptq.Hessian(states.shape[1], self._threads)
            hessian.add(states[seen])
            self._rounder = rounder_of_head(hessian.mean(), self._options, tied=spec.tied)

        def head() -> Iterator[Floats]:
            return weights.pieces("lm_head.weight")

        log_sums = head_log_sums(states, head, spec, self._threads)
        exact = gather_rows(head(), _likely_rows(states[some], log_sums[some], head, spec))
        costs = {}
        for form in self._ways("lm_head"):
            moved = exact + torch.from_numpy(self._change(exact.numpy(), form, self._rounder))
            costs[form] = change_loss(
                states[some], exact, moved, log_sums[some], spec, self._threads
            )
        gradient = drawn_gradient(states, head, spec, log_sums, self._threads)
        (back,) = torch.autograd.grad(normed, start, gradient.reshape(normed.shape))
        return costs, back

    def embedding(self, windows: Tokens, gradient: Tensor) -> Costs:
        """Return the embedding's losses.

        Args:
            windows: [B, T] token ids.
            gradient: [B, T, hidden_size] with respect to the first block's input.
        """
        weights, spec = self._original.weights, self._spec
        known, at = np.unique(windows, return_inverse=True)
        rows = gather_rows(weights.pieces("embed_tokens.weight"), known).numpy()
        g, index = gradient.reshape(-1, rows.shape[1]), torch.from_numpy(at.reshape(-1))
        rounder = self._rounder if spec.tied else rounder_of_ends(self._options)

        def cost(form: TensorFormat) -> float:
            moved = torch.from_numpy(self._change(rows, form, rounder))[index] * spec.embed_scale
            return 0.5 * float((moved * g).sum(1).double().square().mean())

        return {form: cost(form) for form in self._ways("lm_head" if spec.tied else "embed_tokens")}

    def _ways(self, name: str) -> list[TensorFormat]:
        """Formats that hold the tensor: fewer than a layer has, as each takes long to measure."""
        zeros = not self._options.symmetric
        found = [TensorFormat(bits, 32, zeros=zeros) for bits in (2, 4)]
        found += [TensorFormat(4, 32, table=True), TensorFormat(5, 32), TensorFormat(6, 32)]
        found.append(TensorFormat(8, 32))
        size, greatest = self._spec.hidden_size, self._greatest[name]
        if 128 in self._scope.groups(size):
            found.append(TensorFormat(8, 128))
        return fitting(found, size, greatest, self._options, self._scope)

    def _change(self, values: Floats, form: TensorFormat, rounder: Rounder) -> Floats:
        return rounder(values, form, threads=self._threads).dequantise() - values


def halves(count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Split windows into every other one and the rest; split a single window into halves."""
    at = torch.arange(count)
    odd = (at // tokens) % 2 == 1 if count > tokens else at >= count // 2
    return at[~odd], at[odd]


def change_loss(
    states: Tensor, exact: Tensor, moved: Tensor, log_sums: Tensor, spec: DecoderSpec, threads: int
) -> float:
    """KL, a mean over tokens, of a head of which some rows are changed, from the head as it was.

    With l the logits of these rows, r those of the changed ones, Z the sum of all exp(logits):

        KL = sum exp(l) / Z * (l - r) + log(1 + sum (exp(r) - exp(l)) / Z)

    Args:
        states: [n, hidden_size] inputs of the head.
        exact: [R, hidden_size] the rows.
        moved: [R, hidden_size] the same changed.
        log_sums: [n] log Z.
        spec: for what is done to logits.
        threads: how many pieces of the tokens are computed at once.
    """

    def piece(at: slice) -> Tensor:
        before = head_logits(states[at], exact, spec)
        after = head_logits(states[at], moved, spec)
        share = (before - log_sums[at, None]).exp_()
        other = (after - log_sums[at, None]).exp_()
        return share.mul(before - after).sum(1) + torch.log1p((other - share).sum(1))

    pieces = [partial(piece, at) for at in pieces_of(len(states), _TOKENS)]
    return max(0.0, float(torch.cat(side_by_side(threads, pieces)).mean()))


def head_log_sums(states: Tensor, head: Head, spec: DecoderSpec, threads: int = 1) -> Tensor:
    """Return log of the sum of exp(logits) [n] float64 of states [n, hidden_size]."""
    total = torch.full((len(states),), -torch.inf, dtype=torch.float64)

    def add(rows: Tensor, at: slice) -> None:
        total[at] = torch.logaddexp(total[at], head_logits(states[at], rows, spec).logsumexp(1))

    pieces = pieces_of(len(states), _TOKENS)
    for rows in _row_pieces(head):
        side_by_side(threads, [partial(add, rows, at) for at in pieces])
    return total


def _likely_rows(
    states: Tensor, log_sums: Tensor, head: Head, spec: DecoderSpec
) -> npt.NDArray[np.int64]:
    """Rows of the head, in order, that the model gives the greatest probability on average."""
    mass = [
        (head_logits(states, rows, spec) - log_sums[:, None]).exp_().mean(0)
        for rows in _row_pieces(head)
    ]
    most = torch.cat(mass).topk(min(_HEAD_ROWS, sum(map(len, mass)))).indices
    return np.sort(most.numpy())


def drawn_gradient(
    states: Tensor, head: Head, spec: DecoderSpec, log_sums: Tensor, threads: int = 1
) -> Tensor:
    """Gradient of log p(token) with respect to the head's inputs, tokens drawn from p.

    Args:
        states: [n, hidden_size] inputs of the head.
        head: called for the head's rows, some at a time.
        spec: for what is done to logits.
        log_sums: what `head_log_sums` returns for them.
        threads: how many pieces of the tokens are computed at once.

    Returns:
        [n, hidden_size].
    """
    draw = torch.Generator().manual_seed(_SEED)
    # The token drawn is the first with more than so much probability up to it, itself included.
    # The sum of all probabilities may be a little less than 1.
    drawn = (1 - 1e-9) * torch.rand(len(states), generator=draw, dtype=torch.float64)
    gradient = torch.zeros_like(states)

    def add(rows: Tensor, at: slice) -> None:
        logits = head_logits(states[at], rows, spec)
        p = (logits - log_sums[at, None]).float().exp_()
        left, mass = drawn[at], p.sum(1, dtype=torch.float64)
        here = ((left >= 0) & (left < mass)).nonzero()[:, 0]
        token = (p[here].cumsum(1) <= left[here, None]).sum(1).clamp_max_(len(rows) - 1)
        slope = p.neg_()
        slope[here, token] += 1
        left -= mass
        if spec.logit_softcap:
            slope *= (1 - (logits / spec.logit_softcap).square_()).float()
        gradient[at] += (slope * spec.logit_scale) @ rows

    pieces = pieces_of(len(states), _TOKENS)
    for rows in _row_pieces(head):
        side_by_side(threads, [partial(add, rows, at) for at in pieces])
    return gradient


def _row_pieces(head: Head) -> Iterator[Tensor]:
    for piece in head():
        for first in range(0, len(piece), 4096):
            yield torch.from_numpy(piece[first : first + 4096])
