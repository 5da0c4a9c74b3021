"""The result of an answer, with its timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "context", "time", "loop", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of an answer or of a scored text.

    Attributes:
        id: its id in the vocabulary.
        text: what it adds to the text. It is "" for a special token, and for one that ends inside
            a character or what may become a stop text: the text comes with the next token.
        logprob: natural logarithm of its probability, before penalties and
            temperature; None where it was not asked for.
        top_logprobs: the most likely tokens at its place with theirs, most likely first.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The timing of an answer.

    Attributes:
        prompt_tokens: tokens before the answer.
        cached_tokens: how many of them the KV cache still held.
        generated_tokens: tokens of the answer, the one that ended it included.
        prefill_s: time to compute the prompt's tokens that were not cached.
        first_token_s: from the call until the first token was known.
        decode_s: time for the tokens after the first.
        drafted_tokens: tokens that were guessed and computed ahead (`speculate`).
        accepted_tokens: how many of them were right.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    first_token_s: float
    decode_s: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading the prompt; 0 where nothing was computed."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed of the answer after its first token; 0 for a single token."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """A finished answer.

    Attributes:
        text: the generated text, without special tokens and stop text.
        tokens: its token ids, the end token included where there was one.
        finish: "stop" for an end token or stop text, "length" for `max_tokens`, "context" where the
            context was full, "time" for `max_seconds`, "loop" where `stop_loops` found that the
            answer repeats itself, "cancelled" where the caller ended it.
        stats: its timing.
        complete: whether it is all that its schema or grammar asks for; True without one.
        logprobs: the tokens with their log-probabilities; None where `logprobs` was not given.
        tokens_left: how many more tokens the context holds; None where the cache evicts.
    """

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    stats: Stats
    logprobs: tuple[Token, ...] | None = None
    tokens_left: int | None = None
    complete: bool = True

    def __repr__(self) -> str:
        """Show the text's beginning and why it ended; the ids would fill the screen."""
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"Result(text={text!r}, tokens={len(self.tokens)}, finish={self.finish!r})"
