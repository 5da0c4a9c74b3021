"""An answer to a conversation as its reader sees it: text, reasoning and tool calls apart."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from edgetok.dialect.reader import AnswerReader
from edgetok.dialect.request import ChatRequest, Speaker
from edgetok.dialect.tool import AnswerPiece, TextPiece, ToolCall
from edgetok.engine.cached_tokens import NOWHERE, CachedTokens, ReturnPoints
from edgetok.engine.engine import Engine
from edgetok.engine.generation import Generation
from edgetok.engine.mailbox import End
from edgetok.engine.result import Result
from edgetok.engine.sequence import Progress, Sequence
from edgetok.engine.stepper import Stepper
from edgetok.sampling.options import SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ChatResult(Result):
    """A finished answer to a conversation.

    Attributes:
        reasoning: the text of the model's reasoning; "" without any.
        tool_calls: calls that it asks for; their results belong into the next messages.
    """

    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class ChatAnswer(Generation):
    """An answer as it is written: an iterator over its text, as any other.

    `pieces` and `pieces_async` iterate over everything: text, reasoning and calls.
    """

    def __init__(
        self,
        stepper: Stepper,
        sequence: Sequence,
        reader: AnswerReader,
        on_finish: Callable[[Any], None] | None = None,
    ) -> None:
        """Prepare; `begin_answer` is the usual way.

        Args:
            stepper: makes steps.
            sequence: that has not begun.
            reader: takes its text apart.
            on_finish: called once with the result, however the answer ends.
        """
        super().__init__(stepper, sequence, on_finish)
        self._reader = reader
        self._ready: deque[AnswerPiece] = deque()

    def __next__(self) -> str:
        while not (text := self._ready_text()):
            try:
                self._ready += self._reader.push(super().__next__())
            except StopIteration:
                if text := self._ready_text():
                    return text
                raise
        return text

    async def __anext__(self) -> str:
        while not (text := self._ready_text()):
            try:
                self._ready += self._reader.push(await super().__anext__())
            except StopAsyncIteration:
                if text := self._ready_text():
                    return text
                raise
        return text

    def pieces(self) -> Iterator[AnswerPiece]:
        """Iterate over text, reasoning and calls; may be left and begun again."""
        over = False
        while not over:
            try:
                self._ready += self._reader.push(super().__next__())
            except StopIteration:
                over = True
            while self._ready:
                yield self._ready.popleft()

    async def pieces_async(self) -> AsyncIterator[AnswerPiece]:
        """Iterate over the same in an event loop."""
        over = False
        while not over:
            try:
                self._ready += self._reader.push(await super().__anext__())
            except StopAsyncIteration:
                over = True
            while self._ready:
                yield self._ready.popleft()

    def run(self) -> ChatResult:
        """Generate to the end and return the result."""
        super().run()
        return self.result

    @property
    def result(self) -> ChatResult:
        """The answer so far."""
        result, reader = super().result, self._reader
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        values["text"] = reader.text
        return ChatResult(**values, reasoning=reader.reasoning, tool_calls=reader.calls)

    def _over(self, end: End) -> None:
        if not self._ended:
            self._ready += self._reader.finish()
        super()._over(end)

    def _ready_text(self) -> str:
        """Take what is ready; return its text."""
        text = "".join(piece.text for piece in self._ready if isinstance(piece, TextPiece))
        self._ready.clear()
        return text


def begin_answer(
    engine: Engine,
    speaker: Speaker,
    request: ChatRequest,
    options: SamplingOptions,
    *,
    priority: int = 0,
    progress: Progress | None = None,
) -> ChatAnswer:
    """Begin an answer in a cache of its own; nothing is computed before it is read.

    Args:
        engine: writes it.
        speaker: of the same model.
        request: what is asked for.
        options: sampling and limits.
        priority: 0 for an answer that somebody waits for, more for one in the background.
        progress: see `Sequence`.

    Raises:
        ContextError: the conversation does not fit.
        GrammarError: a schema cannot be held.
        TemplateError: the template refuses the messages.
    """
    prompt = speaker.prompt(request)
    tokens = speaker.encode(prompt)
    context = engine.room(tokens, options)
    return answer_in(
        engine,
        speaker,
        context,
        (prompt, tokens),
        request,
        options,
        priority=priority,
        progress=progress,
    )


def places_to_return(
    engine: Engine, speaker: Speaker, request: ChatRequest, prompt: list[int]
) -> ReturnPoints:
    """Return `asked_tokens` and `shared_tokens`, all for none; zeros where no cache needs them."""
    if not engine.has_snapshots:
        return NOWHERE
    shared = speaker.shared_tokens(request, prompt)
    return ReturnPoints(speaker.asked_tokens(request, prompt), shared or len(prompt))


def answer_in(
    engine: Engine,
    speaker: Speaker,
    context: CachedTokens,
    prompt: tuple[str, list[int]],
    request: ChatRequest,
    options: SamplingOptions,
    on_finish: Callable[[Any], None] | None = None,
    *,
    priority: int = 0,
    progress: Progress | None = None,
) -> ChatAnswer:
    """Begin an answer in a given cache.

    Args:
        engine: writes it.
        speaker: of the same model.
        context: the cache, by one answer at a time.
        prompt: text, or its end, and all token ids.
        request: what is asked for.
        options: sampling and limits.
        on_finish: called once with the result, however the answer ends.
        priority: as for `begin_answer`.
        progress: as for `begin_answer`.

    Raises:
        ContextError: the conversation does not fit.
        GrammarError: a schema cannot be held.
    """
    text, tokens = prompt
    plan = speaker.plan(text, request, engine.vocabulary)
    sequence = engine.sequence(
        context,
        tokens,
        options,
        priority=priority,
        constraint=plan.constraint,
        progress=progress,
        shown=plan.shown,
        stops_until=plan.calls,
        places=places_to_return(engine, speaker, request, tokens),
    )
    return ChatAnswer(engine.stepper, sequence, plan.reader, on_finish)
