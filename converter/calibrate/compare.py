"""Compare an artefact with the original: both run side by side, one block at a time.

The artefact's weights are read back from the written file, so that the comparison covers packing.
The output head is applied a few thousand tokens of the vocabulary at a time, with running sums;
logits are never all in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.card.report import Agreement
from edgetok.converter.progress import Progress
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.workers import pieces_of, side_by_side
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import CheckpointError
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]

_HEAD_ROWS = 4096
_MOST_LOSS = 350
_TOKENS = 512  # compared at once: 17 MB for each of the few arrays of logits


def compare(
    weights: CanonicalWeights,
    written: WrittenWeights,
    windows: Tokens,
    progress: Progress,
    threads: int = 1,
) -> Agreement:
    """Run the original and the artefact's weights over the same text.

    Args:
        weights: the original's.
        written: the artefact's.
        windows: [B, T] token ids, T at least 2.
        progress: called for each block.
        threads: how many compute; the result does not depend on it.
    """
    spec = weights.family.spec
    original = Original(weights, threads=threads)
    progress.begin("Comparing with the original", spec.num_layers + 1)
    ours = original.embed(windows, written)
    our_calls = original.calls
    theirs = original.embed(windows)
    for index in range(spec.num_layers):
        with original.block(index) as block:
            theirs = block(theirs)
            for name in block.names:
                block.set(name, torch.from_numpy(written.tensor(f"layers.{index}.{name}")))
            ours = block(ours, our_calls)
        progress.advance()
    states = [
        original.final_norm(hidden, torch.from_numpy(source.tensor("final_norm.weight")))[:, :-1]
        for hidden, source in ((theirs, weights), (ours, written))
    ]
    targets = torch.from_numpy(windows[:, 1:].copy()).reshape(-1)
    agreement = head_agreement(
        states[0].flatten(0, 1),
        states[1].flatten(0, 1),
        weights.pieces("lm_head.weight"),
        written.pieces("lm_head.weight"),
        targets,
        spec,
        threads,
    )
    progress.advance()
    return agreement


def head_agreement(
    theirs: Tensor,
    ours: Tensor,
    their_head: Iterator[Floats],
    our_head: Iterator[Floats],
    targets: Tensor,
    spec: DecoderSpec,
    threads: int = 1,
) -> Agreement:
    """Compare two models' next-token distributions.

    Args:
        theirs: [n, hidden_size] the original's states after the last norm.
        ours: [n, hidden_size] the artefact's.
        their_head: the original's head, some rows at a time.
        our_head: the artefact's, likewise.
        targets: [n] the tokens that came next.
        spec: for what is done to logits.
        threads: how many pieces of the tokens are compared at once.
    """
    parts = [
        _Compared(theirs[at], ours[at], targets[at], spec)
        for at in pieces_of(len(targets), _TOKENS)
    ]
    first = 0
    for their_rows, our_rows in _same_rows(their_head, our_head):
        side_by_side(threads, [partial(part.add, their_rows, our_rows, first) for part in parts])
        first += len(their_rows)
    kl, theirs_lost, ours_lost, same = (
        torch.cat(values) for values in zip(*(part.result() for part in parts), strict=True)
    )
    return Agreement(
        tokens=len(targets),
        kl=max(0.0, float(kl.mean())),
        reference_perplexity=_perplexity(
            float(theirs_lost.mean()), "the original", "not those of a language model: get it again"
        ),
        perplexity=_perplexity(float(ours_lost.mean()), "the result", "broken: give more bits"),
        top1_agreement=float(same.double().mean()),
    )


def _perplexity(loss: float, whose: str, weights: str) -> float:
    """Return e to the loss; below the limit the ratio of two of them is a number as well."""
    if not loss < _MOST_LOSS:
        raise CheckpointError(
            f"{whose} predicts text with a loss of {loss:.0f} nats a token, expected less than "
            f"{_MOST_LOSS}; its weights are {weights}"
        )
    return math.exp(loss)


class _Compared:
    """Two models' distributions of some tokens, a piece of the vocabulary at a time."""

    def __init__(self, theirs: Tensor, ours: Tensor, targets: Tensor, spec: DecoderSpec) -> None:
        self._states, self._targets, self._spec = (theirs, ours), targets, spec
        self._left, self._right = _Running(len(targets)), _Running(len(targets))
        # sum over the vocabulary of exp(l - greatest l) * (l - r), l theirs and r ours
        self._weighted = torch.zeros(len(targets), dtype=torch.float64)

    def add(self, their_rows: Tensor, our_rows: Tensor, first: int) -> None:
        """Add rows of both heads, `first` being the first one's token."""
        l_logits = head_logits(self._states[0], their_rows, self._spec)
        r_logits = head_logits(self._states[1], our_rows, self._spec)
        before = self._left.greatest
        self._left.add(l_logits, first, self._targets)
        self._right.add(r_logits, first, self._targets)
        self._weighted *= (before - self._left.greatest).exp()
        share = (l_logits - self._left.greatest[:, None]).exp_()
        self._weighted += share.mul_(l_logits.sub_(r_logits)).sum(1)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """KL, -log p of the targets by both, and whether both find the same token likeliest."""
        left, right = self._left, self._right
        kl = self._weighted / left.sum - left.log_sum() + right.log_sum()
        theirs, ours = left.log_sum() - left.target, right.log_sum() - right.target
        return kl, theirs, ours, left.likeliest == right.likeliest


class _Running:
    """Softmax's normaliser, the most likely token and the target's logit, a piece at a time."""

    def __init__(self, count: int) -> None:
        self.greatest = torch.full((count,), -torch.inf, dtype=torch.float64)
        self.sum = torch.zeros(count, dtype=torch.float64)
        self.likeliest = torch.zeros(count, dtype=torch.int64)
        self.target = torch.zeros(count, dtype=torch.float64)

    def add(self, logits: Tensor, first: int, targets: Tensor) -> None:
        value, at = logits.max(1)
        self.likeliest = torch.where(value > self.greatest, at + first, self.likeliest)
        greatest = torch.maximum(self.greatest, value)
        self.sum *= (self.greatest - greatest).exp()
        self.sum += (logits - greatest[:, None]).exp_().sum(1)
        self.greatest = greatest
        here = (targets >= first) & (targets < first + logits.shape[1])
        self.target[here] = logits[here, targets[here] - first]

    def log_sum(self) -> Tensor:
        return self.greatest + self.sum.log()


def head_logits(states: Tensor, rows: Tensor, spec: DecoderSpec) -> Tensor:
    """Logits [n, V] float64 of states [n, hidden_size] for some rows [V, hidden_size] of a head."""
    logits = (states @ rows.T).double() * spec.logit_scale
    if spec.logit_softcap:
        logits = spec.logit_softcap * torch.tanh(logits / spec.logit_softcap)
    return logits


def _same_rows(left: Iterator[Floats], right: Iterator[Floats]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of two matrices, as many of each, however the two are cut."""
    a = b = np.empty((0, 0), np.float32)
    while True:
        a = next(left, a) if not len(a) else a
        b = next(right, b) if not len(b) else b
        count = min(len(a), len(b), _HEAD_ROWS)
        if not count:
            return
        yield torch.from_numpy(a[:count]), torch.from_numpy(b[:count])
        a, b = a[count:], b[count:]
