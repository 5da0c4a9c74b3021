"""From logits to the next token.

The order is that of transformers: repetition penalty, presence and frequency penalties,
temperature, top-k, top-p, min-p, then a draw. top-k and min-p do not depend on the temperature's
place; top-p does, and sees the distribution at the chosen temperature among the top k.

Cheap for large vocabularies: nothing sorts more than the candidates that remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import ArtefactError, OptionError

Logits = npt.NDArray[np.float32]

_RUN = 512  # tokens that are drawn from together where all may be drawn
_ROWS = 64  # of the table in which the k-th largest is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen and when to stop.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities reach this sum.
        min_p: keep tokens at least this probable relative to the most likely one.
        repetition_penalty: logits of tokens already in the prompt or the answer are divided by it
            where positive and multiplied where negative (arXiv 1909.05858).
        presence_penalty: subtracted from the logit of every token already in the answer.
        frequency_penalty: subtracted once for each time a token is in the answer.
        seed: equal seeds give equal answers; None draws one.
        max_tokens: the longest answer; None lets it fill the context.
        stop: the answer ends before the first of these texts.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that have no meaning.

        Raises:
            OptionError: names the option, its value and what is expected.
        """
        _number("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, 0, 1 << 24)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.seed is not None:
            _whole("seed", self.seed, 0, (1 << 64) - 1)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, 1 << 28)
        given: object = self.stop
        if isinstance(given, str):
            stop: tuple[object, ...] = (given,)
        elif isinstance(given, (tuple, list)):
            stop = tuple(given)
        else:
            raise OptionError(f"stop is {given!r:.80}, expected texts")
        if len(stop) > 64 or not all(isinstance(s, str) and 0 < len(s) <= 1024 for s in stop):
            raise OptionError(
                f"stop: expected at most 64 texts of 1 to 1024 characters each, found {stop!r:.80}"
            )
        object.__setattr__(self, "stop", stop)

    def with_changes(self, changes: dict[str, Any]) -> SamplingOptions:
        """A copy with some options changed.

        Raises:
            OptionError: a name is unknown or a value out of range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise OptionError(f"unknown option {name!r}; known are {', '.join(known)}")
        return replace(self, **changes)

    @classmethod
    def from_generation_config(cls, config: dict[str, Any]) -> SamplingOptions:
        """What a checkpoint recommends in generation_config.json; the defaults where it is silent.

        Values that are no numbers or out of range are the checkpoint's fault and are passed over.
        """
        options = cls()
        if config.get("do_sample") is False:
            return options
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            value = config.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                try:
                    options = options.with_changes({name: value})
                except OptionError:
                    continue
        return options


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


def _number(name: str, value: object, low: float, high: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise OptionError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
