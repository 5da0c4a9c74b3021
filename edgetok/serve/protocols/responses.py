"""`/v1/responses`: OpenAI's newer protocol, without state: clients send whole conversations."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from edgetok.dialect.tool import CallArguments, CallBegin, ReasoningPiece
from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.protocols.openai_shared import (
    HARMLESS,
    ToolChoice,
    arguments_of,
    checked_logprobs,
    choice_of,
    effort_of,
    error_body,
    grammar_of,
    new_id,
    rated_body,
    tools_of,
)
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
from edgetok.serve.request import BACKGROUND, Ended, Event, Request, Usage, Whole

_TEXTS = ("input_text", "output_text", "text")
_HARMLESS = HARMLESS | {"max_tool_calls", "truncation"}


class _Item(Fields):
    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class _Reasoning(Fields):
    effort: str | None = None


class _TextOptions(Fields):
    format: dict[str, Any] | None = None


class _Body(Fields):
    model: str
    input: str | list[_Item]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: _TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: _Reasoning | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    service_tier: str | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None


class Responses(Protocol):
    """Answers conversations that are lists of items."""

    def parse(self, body: dict[str, Any]) -> Call:
        """Read a body. See `Protocol`."""
        found = validated(_Body, body)
        _refuse_unsupported(found)
        messages = _conversation(found.input)
        if found.instructions:
            messages.insert(0, {"role": "system", "content": found.instructions})
        if not any(message["role"] != "system" for message in messages):
            raise Refusal(400, "input: empty, expected a text or a message", param="input")
        sampling = {
            "temperature": found.temperature,
            "top_p": found.top_p,
            "max_tokens": found.max_output_tokens,
            "logprobs": _rates(found),
        }
        request = Request(
            model=found.model,
            messages=tuple(messages),
            sampling=sampling_of(sampling, {"max_tokens": "max_output_tokens"}),
            priority=BACKGROUND if found.service_tier == "flex" else 0,
            grammar=grammar_of(found.text.format if found.text else None, "text.format"),
            tools=tools_of([_tool(tool) for tool in _functions(found)]),
            tool_choice=choice_of(found.tool_choice),
            parallel_calls=found.parallel_tool_calls is not False,
            effort=effort_of(
                found.reasoning.effort if found.reasoning else None, "reasoning.effort"
            ),
        )
        ignored = sorted(set(found.model_extra or ()) - _HARMLESS)
        return Call(request, bool(found.stream), _Response(found), ignored)

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return the body of a refusal."""
        return error_body(refusal)


def _refuse_unsupported(found: _Body) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(found, name) is not None:
            raise refuse(name, "this server keeps no conversations; send all of it as input")
    if found.background:
        raise refuse("background", "not supported; leave it out")


def _rates(found: _Body) -> int | None:
    """Return the number of most likely tokens at each place; None for no log-probabilities."""
    if found.top_logprobs or "message.output_text.logprobs" in (found.include or ()):
        return checked_logprobs(found.top_logprobs or 0, "top_logprobs")
    return None


def _functions(found: _Body) -> list[dict[str, Any]]:
    """The client's own tools; searches and the like, which only OpenAI has, are skipped."""
    return [tool for tool in found.tools or () if tool.get("type") == "function"]


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: given.get(name) for name in names}}


def _conversation(given: str | list[_Item]) -> list[dict[str, Any]]:
    """Items as templates see messages: an answer's reasoning, text and calls are one of them."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    thought = ""
    for i, item in enumerate(given):
        if item.type == "reasoning":
            parts = item.content if isinstance(item.content, list) else ()
            thought += "".join(part.text or "" for part in parts if part.type == "reasoning_text")
            continue
        message = _message(item, f"input.{i}")
        if message["role"] != "assistant":
            thought = ""
        elif "tool_calls" in message and messages and messages[-1]["role"] == "assistant":
            calls = messages[-1].get("tool_calls", []) + message["tool_calls"]
            message = messages.pop() | {"tool_calls": calls}
        if thought:
            message["reasoning_content"] = message.get("reasoning_content", "") + thought
            thought = ""
        messages.append(message)
    return messages


def _message(item: _Item, place: str) -> dict[str, Any]:
    """One item as templates see a message."""
    if item.type == "message":
        if item.role is None or item.content is None:
            raise Refusal(400, f"{place}: expected role and content", param=place)
        role = "system" if item.role == "developer" else item.role
        return {"role": role, "content": text_of(item.content, f"{place}.content", _TEXTS)}
    if item.type == "function_call":
        arguments = arguments_of(item.arguments or "", item.name, place)
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if item.type == "function_call_output":
        text = text_of(item.output or "", f"{place}.output", _TEXTS)
        return {"role": "tool", "tool_call_id": item.call_id, "content": text}
    raise Refusal(
        400,
        f"{place}: an item of type {item.type!r:.100}, expected 'message', 'function_call', "
        "'function_call_output' or 'reasoning'",
        param=place,
    )


def _shown(choice: str | ToolChoice | None) -> str | dict[str, Any]:
    """Return a choice of tools as it was given."""
    if isinstance(choice, ToolChoice):
        return choice.model_dump(exclude_unset=True)
    return choice or "auto"


class _Response(Rendering):
    def __init__(self, found: _Body) -> None:
        self._number = 0
        self._whole = Whole()
        self._items: list[dict[str, Any]] = []
        self._head: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": found.model,
            "instructions": found.instructions,
            "max_output_tokens": found.max_output_tokens,
            "metadata": (found.model_extra or {}).get("metadata") or {},
            "parallel_tool_calls": found.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": found.temperature,
            "top_p": found.top_p,
            "text": {"format": (found.text.format if found.text else None) or {"type": "text"}},
            "tool_choice": _shown(found.tool_choice),
            "tools": _functions(found),
            "top_logprobs": found.top_logprobs or 0,
            "truncation": "disabled",
            "error": None,
            "incomplete_details": None,
        }

    def begin(self, served: Served, usage: Usage) -> Iterable[Payload]:
        first = self._head | {"status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=first)
        yield self._event("response.in_progress", response=first)

    def event(self, event: Event) -> Iterable[Payload]:
        self._whole.take(event)
        if isinstance(event, Ended):
            if not self._items:
                yield from self._open(_MESSAGE)
            yield from self._close(self._status)
            return
        piece = event.piece
        if isinstance(piece, CallBegin):
            yield from self._open(_call(piece.id, piece.name, ""))
        elif isinstance(piece, CallArguments):
            self._items[-1]["arguments"] += piece.text
            yield self._placed("response.function_call_arguments.delta", delta=piece.text)
        elif isinstance(piece, ReasoningPiece):
            if not self._is_open("reasoning"):
                yield from self._open(_REASONING)
            self._items[-1]["content"][0]["text"] += piece.text
            yield self._placed("response.reasoning_text.delta", content_index=0, delta=piece.text)
        else:
            if not self._is_open("message"):
                yield from self._open(_MESSAGE)
            rated = rated_body(event.rated)
            part = self._items[-1]["content"][0]
            part["text"] += piece.text
            part["logprobs"] += rated
            yield self._placed(
                "response.output_text.delta", content_index=0, delta=piece.text, logprobs=rated
            )

    def end(self, usage: Usage) -> Iterable[Payload]:
        yield self._event(f"response.{self._status}", response=self._finished(usage))

    def failed(self, refusal: Refusal) -> Iterable[Payload]:
        yield self._event("error", code=refusal.code, message=refusal.message, param=refusal.param)
        error = {"code": "server_error", "message": refusal.message}
        failed = self._head | {"status": "failed", "output": [], "usage": None, "error": error}
        yield self._event("response.failed", response=failed)

    def body(self, served: Served, answers: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        (one,) = answers
        self._whole = one
        if one.reasoning:
            self._items.append(_item(_REASONING, one.reasoning))
        if one.text or not one.calls:
            self._items.append(_item(_MESSAGE, one.text))
            self._items[-1]["content"][0]["logprobs"] += rated_body(one.rated)
        self._items += [_item(_call(*call), None) for call in one.calls]
        for item in self._items:
            item["status"] = "completed"
        self._items[-1]["status"] = self._status
        return self._finished(usage)

    @property
    def _status(self) -> str:
        return "completed" if self._whole.reason == "stop" else "incomplete"

    def _finished(self, usage: Usage) -> dict[str, Any]:
        found = self._head | {
            "status": self._status,
            "output": self._items,
            "usage": _usage(usage),
        }
        if self._status == "incomplete":
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        return found

    def _is_open(self, kind: str) -> bool:
        return bool(self._items) and self._items[-1]["type"] == kind

    def _open(self, item: dict[str, Any]) -> Iterable[Payload]:
        yield from self._close("completed")
        made = _item(item, "")
        self._items.append(made)
        bare = made | ({"content": []} if "content" in made else {})
        yield self._event(
            "response.output_item.added", output_index=len(self._items) - 1, item=bare
        )
        if "content" in made:
            part = copy.deepcopy(made["content"][0])
            yield self._placed("response.content_part.added", content_index=0, part=part)

    def _close(self, status: str) -> Iterable[Payload]:
        """End the item that is open, if there is one."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            yield self._placed(
                "response.function_call_arguments.done",
                arguments=item["arguments"],
                name=item["name"],
            )
        else:
            part = dict(item["content"][0])
            kind = "reasoning_text" if item["type"] == "reasoning" else "output_text"
            rated = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            yield self._placed(f"response.{kind}.done", content_index=0, text=part["text"], **rated)
            yield self._placed("response.content_part.done", content_index=0, part=part)
        yield self._event(
            "response.output_item.done", output_index=len(self._items) - 1, item=dict(item)
        )

    def _placed(self, kind: str, **fields: Any) -> Payload:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Payload:
        number, self._number = self._number, self._number + 1
        return kind, {"type": kind, "sequence_number": number} | fields


_MESSAGE: dict[str, Any] = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}],
}
_REASONING: dict[str, Any] = {
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": ""}],
}
_IDS = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def _item(like: dict[str, Any], text: str | None) -> dict[str, Any]:
    """A new item of the output; `text` is that of its only part, if it has one."""
    made = {"id": new_id(_IDS[like["type"]]), "status": "in_progress"} | like
    if "content" in like:
        made["content"] = [copy.deepcopy(like["content"][0]) | {"text": text}]
    return made


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        **usage.losses,
    }
