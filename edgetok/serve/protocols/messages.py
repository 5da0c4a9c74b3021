"""`/v1/messages`: Anthropic's protocol."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from edgetok.dialect.tool import CallArguments, CallBegin, ReasoningPiece
from edgetok.engine.result import FinishReason
from edgetok.grammar.definition import Grammar
from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.protocols.openai_shared import effort_of, grammar_of, named, new_id, tools_of
from edgetok.serve.protocols.protocol import (
    Call,
    Fields,
    Part,
    Payload,
    Protocol,
    Rendering,
    refuse,
    sampling_of,
    text_of,
    validated,
)
from edgetok.serve.request import BACKGROUND, Event, Request, Said, Usage, Whole

_STOPPED: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "context": "max_tokens",
    "loop": "end_turn",
    "time": "max_tokens",
}
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}
_HARMLESS = {"metadata", "context_management", "container", "inference_geo"}


class _Block(Part):
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    is_error: bool | None = None
    content: str | list[_Block] | None = None


class _Message(Fields):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _ToolChoice(Fields):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(Fields):
    type: str
    budget_tokens: int | None = None


class _OutputConfig(Fields):
    effort: str | None = None
    format: dict[str, Any] | None = None


class _Body(Fields):
    model: str
    max_tokens: int
    messages: list[_Message] = Field(min_length=1, max_length=4096)
    system: str | list[_Block] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: dict[str, Any] | None = None  # where output_config.format was at first
    service_tier: str | None = None


class Messages(Protocol):
    """Answers conversations of content blocks."""

    def parse(self, body: dict[str, Any]) -> Call:
        """Read a body. See `Protocol`."""
        found = validated(_Body, body)
        sampling = {
            "temperature": found.temperature,
            "top_p": found.top_p,
            "top_k": found.top_k,
            "max_tokens": found.max_tokens,
            "stop": tuple(found.stop_sequences or ()) or None,
        }
        messages = [one for i, given in enumerate(found.messages) for one in _messages(given, i)]
        if found.system:
            told = _joined(found.system, "system")
            messages.insert(0, {"role": "system", "content": told})
        begun = ""
        if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
            # The answer goes on where the last message ends.
            begun = messages.pop()["content"].rstrip()
            if not messages:
                raise Refusal(400, "messages: only the assistant's, expected one of the user's")
        request = Request(
            model=found.model,
            messages=tuple(messages),
            begun=begun,
            sampling=sampling_of(sampling, {"stop": "stop_sequences"}),
            priority=BACKGROUND if found.service_tier == "flex" else 0,
            tools=tools_of([_tool(tool, i) for i, tool in enumerate(found.tools or ())]),
            tool_choice=_choice(found.tool_choice),
            parallel_calls=not (found.tool_choice and found.tool_choice.disable_parallel_tool_use),
            grammar=_grammar(found),
            **_thinking(found),
        )
        ignored = sorted(set(found.model_extra or ()) - _HARMLESS)
        return Call(request, bool(found.stream), _Response(found.model), ignored)

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return the body of a refusal."""
        return _error(refusal)


def _tool(given: dict[str, Any], number: int) -> dict[str, Any]:
    if given.get("type", "custom") != "custom":
        raise refuse(
            f"tools.{number}", f"a tool of type {given['type']!r:.80}, expected one of the client's"
        )
    function = {
        "name": given.get("name"),
        "description": given.get("description"),
        "parameters": given.get("input_schema"),
    }
    return {"type": "function", "function": function}


def _choice(given: _ToolChoice | None) -> str:
    if given is None:
        return "auto"
    if given.type == "tool" and given.name is not None:
        return named(given.name)
    word = {"auto": "auto", "any": "required", "none": "none"}.get(given.type)
    if word is None:
        raise refuse(
            "tool_choice", "expected the type 'auto', 'any' or 'none', or 'tool' with a name"
        )
    return word


def _thinking(found: _Body) -> dict[str, Any]:
    """Read whether the model may reason, and for how many tokens."""
    given, config = found.thinking, found.output_config
    effort = effort_of(config.effort if config else None, "output_config.effort")
    if given is None or given.type == "adaptive":
        return {"effort": effort}
    if given.type == "disabled":
        return {"effort": "none"}
    if given.type != "enabled":
        raise refuse("thinking", "expected 'enabled' with budget_tokens, 'disabled' or 'adaptive'")
    return {"effort": effort or "high", "reasoning_tokens": given.budget_tokens}


def _grammar(found: _Body) -> Grammar | None:
    """The rule for the answer: a JSON schema in either place."""
    if found.output_config and found.output_config.format:
        return grammar_of(found.output_config.format, "output_config.format")
    return grammar_of(found.output_format, "output_format")


def _messages(given: _Message, number: int) -> Iterable[dict[str, Any]]:
    """One message as templates see it; results of tools are messages of their own."""
    place = f"messages.{number}.content"
    if isinstance(given.content, str):
        yield {"role": given.role, "content": given.content}
        return
    results = [(i, one) for i, one in enumerate(given.content) if one.type == "tool_result"]
    for i, block in results:
        text = _joined(block.content or "", f"{place}.{i}.content")
        if block.is_error:
            text = f"Error: {text}"  # templates have no other place for it
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": block.input or {}},
        }
        for block in given.content
        if block.type == "tool_use"
    ]
    thoughts = "".join(block.thinking or "" for block in given.content if block.type == "thinking")
    known = ("tool_result", "tool_use", "thinking", "redacted_thinking")
    text = _joined(given.content, place, known)
    if text or calls or not results:
        found: dict[str, Any] = {"role": given.role, "content": text}
        if thoughts:
            found["reasoning_content"] = thoughts
        if calls:
            found["tool_calls"] = calls
        yield found


def _joined(content: str | Sequence[_Block], place: str, skipped: Sequence[str] = ()) -> str:
    return text_of(content, place, ("text",), noun="block", skipped=skipped)


def _error(refusal: Refusal) -> dict[str, Any]:
    other = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = _KINDS.get(refusal.status, other)
    return {"type": "error", "error": {"type": kind, "message": refusal.message}}


class _Response(Rendering):
    def __init__(self, model: str) -> None:
        self._whole = Whole()
        self._kind = ""  # of the block that is open
        self._index = -1
        self._head: dict[str, Any] = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def begin(self, served: Served, usage: Usage) -> Iterable[Payload]:
        first = self._head | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }
        yield "message_start", {"type": "message_start", "message": first}

    def event(self, event: Event) -> Iterable[Payload]:
        self._whole.take(event)
        if not isinstance(event, Said):
            if self._index < 0:
                yield from self._open("text", {"type": "text", "text": ""})
            yield from self._close()
            return
        piece = event.piece
        if isinstance(piece, CallBegin):
            block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
            yield from self._open("tool_use", block)
        elif isinstance(piece, CallArguments):
            yield self._delta({"type": "input_json_delta", "partial_json": piece.text})
        elif isinstance(piece, ReasoningPiece):
            if self._kind != "thinking":
                yield from self._open("thinking", _thought(""))
            yield self._delta({"type": "thinking_delta", "thinking": piece.text})
        else:
            if self._kind != "text":
                yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.text})

    def end(self, usage: Usage) -> Iterable[Payload]:
        delta = _stopped(self._whole)
        yield "message_delta", {"type": "message_delta", "delta": delta, "usage": _usage(usage)}
        yield "message_stop", {"type": "message_stop"}

    def _open(self, kind: str, block: dict[str, Any]) -> Iterable[Payload]:
        yield from self._close()
        self._kind, self._index = kind, self._index + 1
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        yield "content_block_start", start

    def _close(self) -> Iterable[Payload]:
        if self._kind:
            yield "content_block_stop", {"type": "content_block_stop", "index": self._index}
        self._kind = ""

    def _delta(self, delta: dict[str, Any]) -> Payload:
        return (
            "content_block_delta",
            {"type": "content_block_delta", "index": self._index, "delta": delta},
        )

    def failed(self, refusal: Refusal) -> Iterable[Payload]:
        return [("error", _error(refusal))]

    def body(self, served: Served, answers: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        (one,) = answers
        content: list[dict[str, Any]] = [_thought(one.reasoning)] if one.reasoning else []
        if one.text or not one.calls:
            content.append({"type": "text", "text": one.text})
        for call_id, name, arguments in one.calls:
            block = {"type": "tool_use", "id": call_id, "name": name, "input": _values(arguments)}
            content.append(block)
        return self._head | {"content": content, "usage": _usage(usage)} | _stopped(one)


def _thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _values(arguments: str) -> Any:
    """A call's arguments; what was cut in the middle has none."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _stopped(one: Whole) -> dict[str, Any]:
    if one.called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    word = "stop_sequence" if one.stop is not None else _STOPPED.get(one.reason)
    return {"stop_reason": word, "stop_sequence": one.stop}


def _usage(usage: Usage) -> dict[str, Any]:
    """The cost in Anthropic's shape: tokens that were cached are not among the input's."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.generated_tokens,
        **usage.losses,
    }
