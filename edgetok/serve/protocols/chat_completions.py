"""`/v1/chat/completions`: answer a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from edgetok.dialect.tool import AnswerPiece, CallBegin, ReasoningPiece, TextPiece
from edgetok.errors import GrammarError
from edgetok.grammar.definition import Grammar
from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.protocols.openai_chunks import Chunks
from edgetok.serve.protocols.openai_shared import (
    FINISH,
    Sampled,
    ToolChoice,
    arguments_of,
    checked_logprobs,
    choice_of,
    effort_of,
    error_body,
    grammar_of,
    rated_body,
    tools_of,
    usage_body,
)
from edgetok.serve.protocols.protocol import (
    Call,
    Fields,
    Part,
    Payload,
    Protocol,
    refuse,
    text_of,
    validated,
)
from edgetok.serve.request import Event, Rated, Request, Said, Usage, Whole

_MOST_MESSAGES = 4096
_TEXTS = ("text", "input_text", "output_text")
_VARIABLE = bool | int | float | str | None


class _Function(Fields):
    name: str
    arguments: str | dict[str, Any] = ""


class _ToolCall(Fields):
    id: str | None = None
    type: str = "function"
    function: _Function


class _Message(Fields):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None


class _Body(Sampled):
    messages: list[_Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    functions: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, _VARIABLE] | None = None
    audio: dict[str, Any] | None = None


class ChatCompletions(Protocol):
    """Answers conversations in the words of the model's chat template."""

    def parse(self, body: dict[str, Any]) -> Call:
        """Read a body. See `Protocol`."""
        found = validated(_Body, body)
        _refuse_unsupported(found)
        name = "max_tokens" if found.max_completion_tokens is None else "max_completion_tokens"
        request = Request(
            model=found.model,
            messages=tuple(_message(one, f"messages.{i}") for i, one in enumerate(found.messages)),
            sampling=found.sampling(getattr(found, name), _rates(found), name),
            answers=1 if found.n is None else found.n,
            priority=found.importance,
            variables=_variables(found.chat_template_kwargs or {}),
            grammar=_grammar(found),
            tools=tools_of(found.tools),
            tool_choice=choice_of(found.tool_choice),
            parallel_calls=found.parallel_tool_calls is not False,
            effort=effort_of(found.reasoning_effort, "reasoning_effort"),
        )
        rendering = _Completion(found)
        return Call(request, bool(found.stream), rendering, found.ignored)

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return the body of a refusal."""
        return error_body(refusal)


def _refuse_unsupported(found: _Body) -> None:
    if found.chat_template is not None:
        raise refuse("chat_template", "templates are the model's own; leave it out")
    if found.functions:
        raise refuse("functions", "replaced by tools; leave it out")
    if found.audio is not None:
        raise refuse("audio", "this server writes text alone; leave it out")


def _rates(found: _Body) -> int | None:
    """Return the number of log-probabilities at each place; None for none at all."""
    if found.top_logprobs and not found.logprobs:
        raise Refusal(
            400,
            "top_logprobs: given without logprobs, expected logprobs to be true",
            param="top_logprobs",
            code="invalid_value",
        )
    return checked_logprobs(found.top_logprobs or 0, "top_logprobs") if found.logprobs else None


def _grammar(found: _Body) -> Grammar | None:
    """The rule for the answer: OpenAI's response format, or one of the others that vLLM has."""
    given = found.structured_outputs
    if given is None:
        return grammar_of(found.response_format, "response_format")
    names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
    try:
        return Grammar.of({names.get(name, name): value for name, value in given.items()})
    except GrammarError as error:
        raise Refusal(
            400,
            f"structured_outputs: {error}",
            param="structured_outputs",
            code="invalid_schema",
        ) from error


def _variables(given: dict[str, _VARIABLE]) -> dict[str, object]:
    for name in given:
        if name in ("messages", "tools", "documents", "add_generation_prompt", "chat_template"):
            raise refuse("chat_template_kwargs", f"{name!r} cannot be set; leave it out")
    return dict(given)


def _message(given: _Message, place: str) -> dict[str, Any]:
    """One message as templates see it."""
    if given.function_call is not None:
        raise refuse(f"{place}.function_call", "replaced by tool_calls")
    if given.audio is not None:
        raise refuse(f"{place}.audio", "this model reads text alone; give what was said as content")
    found: dict[str, Any] = {
        "role": "system" if given.role == "developer" else given.role,
        "content": text_of(
            given.content or "", f"{place}.content", _TEXTS, code="unsupported_content"
        ),
    }
    if given.content is None and given.role != "assistant":
        raise Refusal(
            400,
            f"{place}.content: null, expected a text",
            param=f"{place}.content",
            code="invalid_value",
        )
    if given.name is not None:
        found["name"] = given.name
    if given.tool_call_id is not None:
        found["tool_call_id"] = given.tool_call_id
    thought = given.reasoning_content or given.reasoning
    if thought:
        found["reasoning_content"] = thought
    if given.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _called(call.function, place)}
            for call in given.tool_calls
        ]
    return found


def _called(function: _Function, place: str) -> dict[str, Any]:
    """A call's name and arguments, which templates write as JSON themselves."""
    arguments = arguments_of(function.arguments, function.name, f"{place}.tool_calls")
    return {"name": function.name, "arguments": arguments}


class _Completion(Chunks):
    def __init__(self, found: _Body) -> None:
        super().__init__(found, "chatcmpl-", "chat.completion.chunk")
        self._rates = bool(found.logprobs)
        self._begun: set[int] = set()
        self._called: set[int] = set()

    def event(self, event: Event) -> Iterable[Payload]:
        if event.place not in self._begun:
            self._begun.add(event.place)
            yield self._message_chunk(event.place, {"role": "assistant", "content": ""}, None)
        if isinstance(event, Said):
            self._called |= {event.place} if isinstance(event.piece, CallBegin) else set()
            yield self._message_chunk(event.place, _delta(event.piece), None, event.rated)
        else:
            called = event.place in self._called and event.reason == "stop"
            reason = "tool_calls" if called else FINISH.get(event.reason)
            yield self._message_chunk(event.place, {}, reason)

    def body(self, served: Served, answers: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        self.begin(served, usage)
        choices = [
            {
                "index": i,
                "message": _answer(one),
                "logprobs": self._logprobs(one.rated),
                "finish_reason": "tool_calls" if one.called else FINISH.get(one.reason),
            }
            for i, one in enumerate(answers)
        ]
        return self._head | {
            "object": "chat.completion",
            "choices": choices,
            "usage": usage_body(usage),
        }

    def _message_chunk(
        self, index: int, delta: dict[str, Any], finish: str | None, rated: Sequence[Rated] = ()
    ) -> Payload:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(rated) if rated else None,
            "finish_reason": finish,
        }
        return self._chunk(choice)

    def _logprobs(self, rated: Sequence[Rated]) -> dict[str, Any] | None:
        return {"content": rated_body(rated), "refusal": None} if self._rates else None


def _delta(piece: AnswerPiece) -> dict[str, Any]:
    """One piece of an answer; a call's id and name come once, then pieces of its arguments."""
    if isinstance(piece, TextPiece):
        return {"content": piece.text}
    if isinstance(piece, ReasoningPiece):
        return {"reasoning_content": piece.text}
    if isinstance(piece, CallBegin):
        function = {"name": piece.name, "arguments": ""}
        call = {"index": piece.index, "id": piece.id, "type": "function", "function": function}
        return {"tool_calls": [call]}
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _answer(one: Whole) -> dict[str, Any]:
    """A whole answer as a message."""
    text = None if one.calls and not one.text else one.text
    found: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if one.reasoning:
        found["reasoning_content"] = one.reasoning
    if one.calls:
        found["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, name, arguments in one.calls
        ]
    return found
