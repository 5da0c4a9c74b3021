"""Losses of ways to store the output head and the embedding, measured directly.

The head's KL is that of the distributions that it gives, on tokens that its rounding did not see.
Only the rows with the most probability are rounded: the others have next to no share in it. Of the
embedding, the rows of tokens that the text has are rounded, and their loss is taken like that of a
layer, by the gradient with respect to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.calibrate.compare import head_agreement, head_logits
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
from edgetok.converter.quantised import fits_float16_scales
from edgetok.formats.layout import TensorFormat
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]
Costs = dict[TensorFormat, float]

_HEAD_TOKENS = 512
_HEAD_ROWS = 8192
_SEED = 20


class Ends:
    """A trial of every way to store the head and the embedding."""

    def __init__(
        self,
        original: Original,
        options: ConvertOptions,
        greatest: Mapping[str, float],
        threads: int,
    ) -> None:
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

        rows = _likely_rows(states[some], head, spec)
        exact = gather_rows(head(), rows).numpy()
        targets = torch.zeros(len(some), dtype=torch.int64)
        costs = {}
        for form in self._ways("lm_head"):
            moved = self._change(exact, form, self._rounder)
            pieces = _changed(head(), rows, moved)
            costs[form] = head_agreement(
                states[some], states[some], head(), pieces, targets, spec, self._threads
            ).kl
        gradient = drawn_gradient(states, head, spec)
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
        found = [TensorFormat(bits, 32, zeros=zeros) for bits in (2, 4, 8)]
        found += [TensorFormat(4, 32, table=True), TensorFormat(5, 32), TensorFormat(6, 32)]
        found.append(TensorFormat(8, 128))
        return fitting(found, self._spec.hidden_size, self._greatest[name])

    def _change(self, values: Floats, form: TensorFormat, rounder: Rounder) -> Floats:
        return rounder(values, form, threads=self._threads).dequantise() - values


def fitting(found: list[TensorFormat], inputs: int, greatest: float) -> list[TensorFormat]:
    """Return those formats that hold a matrix with so many inputs and weights of that magnitude."""
    return [
        form
        for form in dict.fromkeys(found)
        if fits_float16_scales(greatest, form.bits) and form.holds(inputs)
    ]


def halves(count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Split windows into every other one and the rest; split a single window into halves."""
    at = torch.arange(count)
    odd = (at // tokens) % 2 == 1 if count > tokens else at >= count // 2
    return at[~odd], at[odd]


def _likely_rows(
    states: Tensor, head: Callable[[], Iterator[Floats]], spec: DecoderSpec
) -> npt.NDArray[np.int64]:
    """Rows of the head, in order, that the model gives the greatest probability on average."""
    total = torch.full((len(states),), -torch.inf, dtype=torch.float64)
    for rows in _row_pieces(head):
        total = torch.logaddexp(total, head_logits(states, rows, spec).logsumexp(1))
    mass = [
        (head_logits(states, rows, spec) - total[:, None]).exp_().mean(0)
        for rows in _row_pieces(head)
    ]
    most = torch.cat(mass).topk(min(_HEAD_ROWS, sum(map(len, mass)))).indices
    return np.sort(most.numpy())


def _changed(
    pieces: Iterator[Floats], rows: npt.NDArray[np.int64], moved: Floats
) -> Iterator[Floats]:
    """Yield the rows of a matrix with something added to some of them, which are in order."""
    first = 0
    for piece in pieces:
        begin, end = np.searchsorted(rows, (first, first + len(piece)))
        piece = piece.copy()
        piece[rows[begin:end] - first] += moved[begin:end]
        first += len(piece)
        yield piece


def drawn_gradient(
    states: Tensor, head: Callable[[], Iterator[Floats]], spec: DecoderSpec
) -> Tensor:
    """Gradient of log p(token) with respect to the head's inputs, tokens drawn from p.

    Args:
        states: [n, hidden_size] inputs of the head.
        head: called for the head's rows, some at a time.
        spec: for what is done to logits.

    Returns:
        [n, hidden_size].
    """
    draw = torch.Generator().manual_seed(_SEED)
    n = len(states)
    best = torch.full((n,), -torch.inf, dtype=torch.float64)
    token = torch.zeros(n, dtype=torch.int64)
    total = torch.full((n,), -torch.inf, dtype=torch.float64)
    first = 0
    for rows in _row_pieces(head):
        logits = head_logits(states, rows, spec)
        total = torch.logaddexp(total, logits.logsumexp(1))
        # The greatest of logits plus Gumbel noise is a draw from their softmax.
        noise = torch.rand(logits.shape, generator=draw, dtype=torch.float64)
        value, at = (logits - noise.log().neg_().log_()).max(1)
        token = torch.where(value > best, at + first, token)
        best = torch.maximum(best, value)
        first += len(rows)
    gradient = torch.zeros_like(states)
    first = 0
    for rows in _row_pieces(head):
        logits = head_logits(states, rows, spec)
        slope = (logits - total[:, None]).exp_().neg_()
        here = (token >= first) & (token < first + len(rows))
        slope[here, token[here] - first] += 1
        if spec.logit_softcap:
            slope *= 1 - (logits / spec.logit_softcap).square_()
        gradient += (slope * spec.logit_scale).float() @ rows
        first += len(rows)
    return gradient


def _row_pieces(head: Callable[[], Iterator[Floats]]) -> Iterator[Tensor]:
    for piece in head():
        for first in range(0, len(piece), 4096):
            yield torch.from_numpy(piece[first : first + 4096])
