"""The steps from logits to a token, one after the other over a shared state.

The order is that of transformers: repetition penalty, presence and frequency penalties,
temperature, top-k, top-p, min-p, then a draw. top-k and min-p do not depend on the temperature's
place; top-p does, and sees the distribution at the chosen temperature among the top k. A mask of
allowed tokens (a grammar) comes between penalties and temperature.

Large vocabularies are cheap: only the remaining candidates are sorted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.errors import ArtefactError
from edgetok.sampling.device import MOST_CANDIDATES
from edgetok.sampling.options import SamplingOptions

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_RUN = 512  # tokens that are drawn from together where all may be drawn
_MORE = 256  # rows of a table for tokens that the answer brings, at first
_ROWS = 64  # of the table in which the k-th largest is looked for


class Choices:
    """The tokens that may still be chosen. Steps narrow it.

    Attributes:
        logits: float32 [vocab_size]; steps that change logits put a copy in their place.
        temperature: that the logits are to be divided by; 0 means the most likely token.
        ids: int64 in rising order; None while all tokens may be chosen.
        total: sum of the weights of all tokens that a step before has summed; else None.
    """

    def __init__(self, logits: Logits) -> None:
        """Begin with all tokens."""
        self.logits = logits
        self.temperature = 1.0
        self.ids: npt.NDArray[np.int64] | None = None
        self.total: float | None = None
        self._weights: Floats | None = None

    @property
    def weights(self) -> Floats:
        """exp((logits - largest) / temperature) of `ids`, the largest 1."""
        if self._weights is None:
            kept = (self.logits if self.ids is None else self.logits[self.ids]).astype(np.float64)
            self._weights = np.exp((kept - kept.max()) / self.temperature)
        return self._weights

    @property
    def probabilities(self) -> Floats:
        """Return the probabilities of `ids`; they add up to 1."""
        return np.asarray(self.weights / self.weights.sum())

    def allow(self, allowed: npt.NDArray[np.bool_]) -> None:
        """Drop tokens before any other step has looked at them: [vocab_size]."""
        self.logits = np.where(allowed, self.logits, np.float32(-np.inf))

    def keep(self, mask: npt.NDArray[np.bool_]) -> None:
        """Keep the ids where the mask [choices left] is true."""
        weights = self.weights[mask]
        self.ids = np.flatnonzero(mask) if self.ids is None else self.ids[mask]
        self._weights = weights


class Step(Protocol):
    """One step of the way."""

    @property
    def on_device(self) -> bool:
        """Return whether a backend that draws tokens itself (`step_sampled`) can do this step."""

    def __call__(self, choices: Choices) -> None:
        """Narrow the choices, or change their logits."""


class Penalties:
    """Lower the logits of tokens that were there before. It looks back, so the host does it."""

    on_device = False

    def __init__(self, options: SamplingOptions, vocab_size: int, prompt: Sequence[int]) -> None:
        """Count the prompt's tokens that have a logit as seen by the repetition penalty."""
        self._options = options
        self._repeats = options.repetition_penalty != 1.0
        ids = sorted({i for i in prompt if 0 <= i < vocab_size}) if self._repeats else []
        self._rows = {token: row for row, token in enumerate(ids)}
        self._table = np.zeros((len(ids) + _MORE, 2), np.int32)
        self._table[: len(ids), 0] = ids

    @property
    def seen(self) -> npt.NDArray[np.int32]:
        """Tokens to penalise, each once, and how often each is in the answer: [n, 2]."""
        return self._table[: len(self._rows)]

    def fork(self) -> Penalties:
        """Return a copy that goes its own way."""
        made = copy.copy(self)
        made._rows, made._table = dict(self._rows), self._table.copy()
        return made

    def __call__(self, choices: Choices) -> None:
        """Change the logits of tokens seen before (arXiv 1909.05858) and of those in the answer."""
        options, changed = self._options, choices.logits.copy()
        ids, counts = self.seen.T
        if self._repeats:
            values = changed[ids]
            penalty = np.float32(options.repetition_penalty)
            changed[ids] = np.where(values < 0, values * penalty, values / penalty)
        said = counts > 0
        changed[ids[said]] -= np.float32(options.presence_penalty)
        changed[ids[said]] -= np.float32(options.frequency_penalty) * counts[said].astype(
            np.float32
        )
        choices.logits = changed

    def chosen(self, token: int) -> None:
        """Remember a token of the answer."""
        row = self._rows.setdefault(token, len(self._rows))
        if row == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[row, 0] = token
        self._table[row, 1] += 1


class Temperature:
    """Divide the logits by a temperature."""

    on_device = True

    def __init__(self, temperature: float) -> None:
        """Take a temperature from 0 up."""
        self._temperature = temperature

    def __call__(self, choices: Choices) -> None:
        """Set it; what needs the quotients computes them of the tokens that are left."""
        choices.temperature = self._temperature


class TopK:
    """Keep the k most likely tokens, and equals of the last of them, as transformers does."""

    def __init__(self, k: int) -> None:
        """Keep k > 0 tokens."""
        self._k = k

    @property
    def on_device(self) -> bool:
        """Return whether a device keeps this many tokens."""
        return self._k <= MOST_CANDIDATES

    def __call__(self, choices: Choices) -> None:
        """Keep them."""
        if self._k < choices.logits.size:
            choices.ids = np.flatnonzero(choices.logits >= _kth_largest(choices.logits, self._k))


class TopP:
    """Keep the most likely tokens until their probabilities reach a sum (arXiv 1904.09751)."""

    on_device = True

    def __init__(self, p: float) -> None:
        """Reach the sum p < 1."""
        self._p = p

    def __call__(self, choices: Choices) -> None:
        """Keep them."""
        if choices.ids is None and choices.logits.size > _RUN:
            weights = _weights(choices.logits, choices.temperature)
            choices.ids, choices.total = _heaviest(weights, self._p)
        total = choices.weights.sum() if choices.total is None else choices.total
        choices.keep(_nucleus(choices.weights, self._p * total))


class MinP:
    """Keep tokens at least so probable relative to the most likely one."""

    on_device = True

    def __init__(self, p: float) -> None:
        """Keep those of at least p > 0 times the largest probability."""
        self._p = p

    def __call__(self, choices: Choices) -> None:
        """Keep them."""
        if choices.ids is None:
            largest = float(choices.logits.max())
            bar = largest + choices.temperature * math.log(self._p)
            bar -= 1e-5 * (1.0 + abs(largest))  # a little more than will do, and then exactly
            choices.ids = np.flatnonzero(choices.logits >= bar)
        choices.keep(choices.weights >= self._p)


class Pick:
    """Choose one of the tokens that are left."""

    def __init__(self, options: SamplingOptions) -> None:
        """Choose the most likely one at temperature 0, else draw."""
        self._likeliest = options.temperature == 0.0
        self._top_k = options.top_k

    @property
    def on_device(self) -> bool:
        """Return whether a device can draw: it draws among a few tokens."""
        return self._likeliest or 1 <= self._top_k <= MOST_CANDIDATES

    def __call__(self, choices: Choices, share: float) -> int:
        """Draw the token before which `share` (0..1) of the probability lies, in order of ids."""
        if choices.ids is None and choices.logits.size > _RUN:
            # All may be drawn: first one of their runs, then one of its tokens.
            weights = _weights(choices.logits, choices.temperature)
            run, rest = _draw(np.add.reduceat(weights, np.arange(0, weights.size, _RUN)), share)
            first = run * _RUN
            return first + _draw(weights[first : first + _RUN], rest)[0]
        place, _ = _draw(choices.probabilities, share)
        return place if choices.ids is None else int(choices.ids[place])


def likeliest(logits: Logits) -> int:
    """Return the most likely token.

    Raises:
        ArtefactError: the logits are not numbers.
    """
    best = int(np.argmax(logits))  # a NaN anywhere is what argmax finds
    if not math.isfinite(logits[best]):
        raise not_finite(float(logits[best]), best)
    return best


def not_finite(logit: float, token: int) -> ArtefactError:
    """Say that a logit is not a number."""
    return ArtefactError(
        f"the model's logits are not finite ({logit} for token {token}); its weights are damaged: "
        "run `edgetok verify` on the folder"
    )


def penalises(options: SamplingOptions) -> bool:
    """Return whether earlier tokens count less or more."""
    penalties = options.presence_penalty, options.frequency_penalty
    return options.repetition_penalty != 1.0 or penalties != (0.0, 0.0)


def narrowing(options: SamplingOptions) -> list[Step]:
    """Return the steps between penalties and the draw that these options ask for."""
    steps: list[Step] = [Temperature(options.temperature)]
    if options.temperature == 0.0:
        return steps
    if options.top_k > 0:
        steps.append(TopK(options.top_k))
    if options.top_p < 1.0:
        steps.append(TopP(options.top_p))
    if options.min_p > 0.0:
        steps.append(MinP(options.min_p))
    return steps


def _weights(logits: Logits, temperature: float) -> Logits:
    """exp((logits - largest) / temperature) in float32: what all tokens are worth, quickly."""
    with np.errstate(over="ignore"):
        weights: Logits = np.exp((logits - logits.max()) / np.float32(max(temperature, 1e-30)))
    return weights


def _draw(weights: npt.NDArray[Any], share: float) -> tuple[int, float]:
    """Return the index at which a share of the weights' sum falls, and the share of that weight."""
    cumulated = np.cumsum(weights, dtype=np.float64)
    goal = share * cumulated[-1]
    place = int(np.searchsorted(cumulated, goal, side="right"))
    place = min(place, int(np.flatnonzero(weights)[-1]))
    inside = (goal - cumulated[place]) / float(weights[place]) + 1.0
    return place, min(max(inside, 0.0), 1.0)


def _kth_largest(logits: Logits, k: int) -> np.float32:
    """The k-th largest, 0 < k < size; of a large vocabulary only a few are looked at twice."""
    columns = logits.size // _ROWS
    if columns > k:
        # k columns have a maximum of at least this, so the k-th largest is not below it.
        largest = logits[: _ROWS * columns].reshape(_ROWS, columns).max(axis=0)
        logits = logits[logits >= np.partition(largest, columns - k)[columns - k]]
    bar: np.float32 = np.partition(logits, logits.size - k)[logits.size - k]
    return bar


def _heaviest(weights: Logits, top_p: float) -> tuple[npt.NDArray[np.int64], float]:
    """Return the heaviest tokens, enough of them to reach `top_p` of the sum, and the sum.

    A few usually are enough, so that the rest is never sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    for bar in (2.0**-6, 2.0**-12, 2.0**-18):
        ids = np.flatnonzero(weights >= np.float32(bar))
        if weights[ids].sum(dtype=np.float64) > top_p * total * (1.0 + 1e-6):
            return ids, total
    return np.arange(weights.size), total


def _nucleus(weights: Floats, goal: float) -> npt.NDArray[np.bool_]:
    """Return the weights needed to reach `goal`, largest first; of equals, the first.

    Source: arXiv 1904.09751, section 3.1.
    """
    ordered = np.sort(weights)[::-1]
    count = max(int(np.searchsorted(np.cumsum(ordered), goal)) + 1, 1)
    bar = ordered[min(count, len(ordered)) - 1]
    keep: npt.NDArray[np.bool_] = weights > bar
    equals = np.flatnonzero(weights == bar)
    keep[equals[: max(count - int(keep.sum()), 0)]] = True
    return keep
