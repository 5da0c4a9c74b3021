"""From logits to the next token.

The order is that of transformers: repetition penalty, presence and frequency penalties,
temperature, top-k, top-p, min-p, then a draw. top-k and min-p do not depend on the temperature's
place; top-p does, and sees the distribution at the chosen temperature among the top k.

Cheap for large vocabularies: nothing sorts more than the candidates that remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import ArtefactError
from edgetok.sampling.options import SamplingOptions

Logits = npt.NDArray[np.float32]

_RUN = 512  # tokens that are drawn from together where all may be drawn
_ROWS = 64  # of the table in which the k-th largest is looked for


class Sampler:
    """Chooses the tokens of one generation; not to be shared."""

    def __init__(
        self, options: SamplingOptions, vocab_size: int, prompt: Sequence[int] = ()
    ) -> None:
        """Start a generation.

        Args:
            options: how to choose.
            vocab_size: number of logits.
            prompt: tokens that the repetition penalty counts as seen.
        """
        self._options = options
        self._rng = np.random.default_rng(options.seed)
        self._repeats = options.repetition_penalty != 1.0
        self._counts_tokens = options.presence_penalty != 0.0 or options.frequency_penalty != 0.0
        self._seen = np.zeros(vocab_size if self._repeats else 0, np.bool_)
        if self._repeats:
            self._seen[np.asarray(prompt, np.int64)] = True
        self._counts: dict[int, int] = {}  # of tokens in the answer

    def sample(self, logits: Logits) -> int:
        """Choose the next token and remember it.

        Args:
            logits: [vocab_size]; not changed.

        Raises:
            ArtefactError: the logits are not numbers.
        """
        token = self._choose(self._penalised(logits))
        if self._repeats:
            self._seen[token] = True
        if self._counts_tokens:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def share(self) -> float:
        """The stream's next number in [0, 1), for whoever draws in place of `sample`."""
        return float(self._rng.random())

    def _penalised(self, logits: Logits) -> Logits:
        options = self._options
        if not (self._repeats or self._counts_tokens):
            return logits
        changed = logits.copy()
        if self._repeats:
            ids = np.flatnonzero(self._seen)
            values = changed[ids]
            penalty = np.float32(options.repetition_penalty)
            changed[ids] = np.where(values < 0, values * penalty, values / penalty)
        if self._counts_tokens:
            ids = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            changed[ids] -= np.float32(options.presence_penalty)
            changed[ids] -= np.float32(options.frequency_penalty) * counts
        return changed

    def _choose(self, logits: Logits) -> int:
        best = int(np.argmax(logits))  # a NaN anywhere is what argmax finds
        if not math.isfinite(logits[best]):
            raise ArtefactError(
                f"the model's logits are not finite ({logits[best]} for token {best}); its weights "
                "are damaged: run `edgetok verify` on the folder"
            )
        options = self._options
        if options.temperature == 0.0:
            return best
        narrowed = 0 < options.top_k < logits.size or options.top_p < 1.0 or options.min_p > 0.0
        if narrowed or logits.size <= _RUN:
            ids, probabilities = candidates(logits, options)
            return int(ids[_draw(probabilities, self._rng.random())[0]])
        # All may be drawn: first one of their runs, then one of its tokens.
        weights = _weights(logits, options.temperature)
        run, rest = _draw(
            np.add.reduceat(weights, np.arange(0, weights.size, _RUN)), self._rng.random()
        )
        first = run * _RUN
        return first + _draw(weights[first : first + _RUN], rest)[0]


def candidates(
    logits: Logits, options: SamplingOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that may be drawn and how probable each is.

    Args:
        logits: [vocab_size], finite at the maximum.
        options: temperature above 0.

    Returns:
        Ids in rising order, and their probabilities, which add up to 1.
    """
    ids: npt.NDArray[np.int64]
    total = None
    if 0 < options.top_k < logits.size:
        # The k-th largest is the bar, so that equals of it stay in, as in transformers.
        ids = np.flatnonzero(logits >= _kth_largest(logits, options.top_k))
    elif options.top_p < 1.0 and logits.size > _RUN:
        ids, total = _heaviest(_weights(logits, options.temperature), options.top_p)
    elif options.min_p > 0.0:
        largest = float(logits.max())
        bar = largest + options.temperature * math.log(options.min_p)
        ids = np.flatnonzero(logits >= bar - 1e-5 * (1.0 + abs(largest)))  # and then exactly
    else:
        ids = np.arange(logits.size)
    kept = logits[ids].astype(np.float64)
    weights = np.exp((kept - kept.max()) / options.temperature)
    keep = np.ones(len(ids), np.bool_)
    if options.top_p < 1.0:
        keep = _nucleus(weights, options.top_p * (weights.sum() if total is None else total))
    if options.min_p > 0.0:
        keep &= weights >= options.min_p  # the most likely token has weight 1
    ids, weights = ids[keep], weights[keep]
    return ids, weights / weights.sum()


def _weights(logits: Logits, temperature: float) -> Logits:
    """exp((logits - largest) / temperature) in float32: what all tokens are worth, quickly."""
    with np.errstate(over="ignore"):
        weights: Logits = np.exp((logits - logits.max()) / np.float32(max(temperature, 1e-30)))
    return weights


def _draw(weights: npt.NDArray[Any], share: float) -> tuple[int, float]:
    """Where in the weights' sum a share of it falls, and at which share of that weight."""
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
    """The heaviest tokens, enough of them to reach `top_p` of the sum, and the sum.

    A few usually are enough, so that the rest is never sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    for bar in (2.0**-6, 2.0**-12, 2.0**-18):
        ids = np.flatnonzero(weights >= np.float32(bar))
        if weights[ids].sum(dtype=np.float64) > top_p * total * (1.0 + 1e-6):
            return ids, total
    return np.arange(weights.size), total


def _nucleus(weights: npt.NDArray[np.float64], goal: float) -> npt.NDArray[np.bool_]:
    """Which of the weights are needed to reach `goal`, largest first, of equals the first ones.

    Source: arXiv 1904.09751, section 3.1.
    """
    ordered = np.sort(weights)[::-1]
    count = max(int(np.searchsorted(np.cumsum(ordered), goal)) + 1, 1)
    bar = ordered[min(count, len(ordered)) - 1]
    keep: npt.NDArray[np.bool_] = weights > bar
    equals = np.flatnonzero(weights == bar)
    keep[equals[: max(count - int(keep.sum()), 0)]] = True
    return keep
