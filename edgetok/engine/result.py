"""The result of an answer, with its timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "context", "cancelled"]


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
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_s: float
    first_token_s: float
    decode_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading the prompt; 0 where nothing was computed."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed of the answer after its first token; 0 for a single token."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished answer.

    Attributes:
        text: what was written, without special tokens and stop text.
        tokens: its token ids, the end token included where there was one.
        finish: "stop" for an end token or stop text, "length" for `max_tokens`, "context" where the
            context was full, "cancelled" where the caller ended it.
        stats: what it took.
        complete: whether it is all that its schema or grammar asks for; True without one.
    """

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    stats: Stats
    complete: bool = True
