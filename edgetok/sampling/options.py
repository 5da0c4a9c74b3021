"""How tokens are sampled: the options, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from edgetok.errors import OptionError


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


class SamplingChanges(TypedDict, total=False):
    """Sampling options by keyword; see `SamplingOptions`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    max_tokens: int | None
    stop: tuple[str, ...]
