"""Sampling options, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Annotated, Any, TypedDict

from edgetok.errors import OptionError

MOST_LOGPROBS = 1000  # most likely tokens whose log-probabilities are given


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """Options of sampling. Each annotation holds the option's help text.

    The command line makes its flags from these fields (`edgetok.cli.options`), the chat's `/set`
    reads them, and `SamplingChanges` types them as keywords.
    """

    temperature: Annotated[
        float, "Divide the logits by this, e.g. 0.7; 0 always takes the most likely token."
    ] = 0.7
    top_k: Annotated[int, "Draw from this many most likely tokens, e.g. 40; 0 means all."] = 40
    top_p: Annotated[
        float, "Draw from the most likely tokens until their probabilities reach this, e.g. 0.95."
    ] = 0.95
    min_p: Annotated[
        float,
        "Draw from tokens at least this probable relative to the most likely one, e.g. 0.05.",
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        "Divide positive logits, and multiply negative ones, of tokens in the prompt or the answer "
        "by this, e.g. 1.1 (arXiv 1909.05858).",
    ] = 1.0
    presence_penalty: Annotated[
        float, "Subtracted once from the logit of every token already generated."
    ] = 0.0
    frequency_penalty: Annotated[
        float, "Subtracted from a token's logit once for each time it was generated."
    ] = 0.0
    seed: Annotated[
        int | None, "Random seed, e.g. 42; equal seeds give equal answers.  [default: random]"
    ] = None
    max_tokens: Annotated[
        int | None, "Maximum tokens of the answer.  [default: what the context holds]"
    ] = None
    stop: Annotated[
        tuple[str, ...], "End the answer before this text, e.g. '\\n'. May be given several times."
    ] = ()
    max_seconds: Annotated[
        float | None,
        "Maximum time for prompt and answer together, e.g. 30.  [default: no limit]",
    ] = None
    stop_loops: Annotated[
        bool,
        "End an answer that repeats itself without end.  [default: in edgetok chat]",
    ] = False
    logprobs: Annotated[
        int | None,
        "Give each token's log-probability, and those of this many most likely tokens, e.g. 5.",
    ] = None

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
        if self.max_seconds is not None:
            _number("max_seconds", self.max_seconds, 0.0, 1e9)
        if not isinstance(self.stop_loops, bool):
            raise OptionError(f"stop_loops is {self.stop_loops!r}, expected True or False")
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MOST_LOGPROBS)
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
        """Return a copy with some options changed.

        Raises:
            OptionError: a name is unknown or a value out of range.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
                raise OptionError(f"unknown option {name!r}; {hint}")
        return replace(self, **changes)

    @classmethod
    def from_generation_config(cls, config: dict[str, Any]) -> SamplingOptions:
        """Return the options that a checkpoint's generation_config.json recommends.

        Options that the file leaves out keep their defaults, and so do options whose value is not
        a number or out of range.
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
        or not low <= value <= high  # NaN is in no range, and an int may be beyond all floats
    ):
        raise OptionError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}, expected a whole number from {low} to {high}")


class SamplingChanges(TypedDict, total=False):
    """Sampling options by keyword; see `SamplingOptions`. A test compares the two."""

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
    max_seconds: float | None
    stop_loops: bool
    logprobs: int | None
