"""One request and the events that answer it, in no protocol's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetok.dialect.request import Effort
from edgetok.dialect.tool import AnswerPiece, CallBegin, ReasoningPiece, TextPiece, Tool
from edgetok.engine.result import FinishReason
from edgetok.grammar.definition import Grammar
from edgetok.serve.failure import Refusal

MOST_ANSWERS = 16  # of one request
BACKGROUND = 1  # priority of a request that nobody waits for

Prompt = str | tuple[int, ...]


def prompts_of(
    given: str | list[str] | list[int] | list[list[int]], param: str
) -> tuple[Prompt, ...]:
    """Return one text, several, or their tokens, as OpenAI's endpoints take them.

    Raises:
        Refusal: there is none.
    """
    if isinstance(given, str):
        return (given,)
    if not given:
        raise Refusal(400, f"{param}: empty, expected a text or tokens", param=param)
    if all(isinstance(one, int) for one in given):
        return (tuple(one for one in given if isinstance(one, int)),)
    listed = [one for one in given if not isinstance(one, int)]
    return tuple(one if isinstance(one, str) else tuple(one) for one in listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of a client, in no protocol's words.

    Attributes:
        model: a name that the server knows.
        messages: messages of a conversation, as the chat template sees them; empty where texts are
            continued.
        prompts: texts, or tokens, to be continued; empty for a conversation.
        begun: text that the answer goes on from, as if the model had written it.
        sampling: options that differ from the model's own; see `SamplingOptions`.
        answers: number of answers to each prompt.
        priority: 0 where somebody waits, more in the background.
        variables: further variables of the chat template, e.g. `enable_thinking`.
        echo: whether answers begin with their prompt.
        grammar: that each answer matches; None for any text.
        tools, tool_choice, parallel_calls, effort, reasoning_tokens: see `ChatRequest`.
    """

    model: str
    messages: tuple[Mapping[str, Any], ...] = ()
    prompts: tuple[Prompt, ...] = ()
    begun: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    answers: int = 1
    priority: int = 0
    variables: Mapping[str, object] = field(default_factory=dict)
    echo: bool = False
    grammar: Grammar | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_calls: bool = True
    effort: Effort | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Rated:
    """A token of an answer's text with its log-probability.

    Attributes:
        data: its bytes, perhaps a part of a character.
        logprob: natural logarithm of its probability before penalties and temperature.
        top: the most likely tokens at its place with theirs, most likely first.
    """

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer: text, reasoning, or a part of a call; of text the tokens if asked."""

    place: int
    piece: AnswerPiece
    rated: tuple[Rated, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer, why, and the stop text if it was one."""

    place: int
    reason: FinishReason
    stop: str | None = None


Event = Said | Ended


@dataclass(slots=True)
class Usage:
    """The cost of a request.

    Attributes:
        prompt_tokens: tokens of all prompts; several answers to one count it once.
        generated_tokens: tokens of all answers.
        reasoning_tokens: those of them before the answers' texts.
        cached_tokens: tokens of the prompts that were not computed again.
        evicted_tokens: seen and no longer held when an answer ended, by a bounded cache.
        attention_loss: share of all attention that went to evicted tokens, the largest of the
            answers.
        kept: how much of the latest answer's cache is still held, from its first token to its
            last: shares from 0 to 1 of equal stretches.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    evicted_tokens: int = 0
    attention_loss: float = 0.0
    kept: tuple[float, ...] = ()

    @property
    def losses(self) -> dict[str, float]:
        """Return the fields of a usage that say what a bounded cache has lost; {} for nothing."""
        if not self.evicted_tokens:
            return {}
        return {
            "evicted_tokens": self.evicted_tokens,
            "attention_loss": round(self.attention_loss, 6),
        }


@dataclass(slots=True)
class Whole:
    """An answer from beginning to end.

    Attributes:
        text: without reasoning and calls.
        reasoning: the model's reasoning before it.
        calls: calls of tools, as (id, name, arguments as JSON text).
        reason: why it ended.
        stop: the stop text that ended it.
        rated: the text's tokens where log-probabilities were asked for.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    reason: FinishReason = "cancelled"
    stop: str | None = None
    rated: list[Rated] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Add what an event says."""
        if isinstance(event, Ended):
            self.reason, self.stop = event.reason, event.stop
        elif isinstance(event.piece, TextPiece):
            self.text += event.piece.text
            self.rated += event.rated
        elif isinstance(event.piece, ReasoningPiece):
            self.reasoning += event.piece.text
        elif isinstance(event.piece, CallBegin):
            self.calls.append((event.piece.id, event.piece.name, ""))
        else:
            call_id, name, arguments = self.calls[event.piece.index]
            self.calls[event.piece.index] = call_id, name, arguments + event.piece.text

    @property
    def called(self) -> bool:
        """Return whether it ended in order to have tools called."""
        return bool(self.calls) and self.reason == "stop"
