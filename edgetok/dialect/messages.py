"""Messages as a model's chat template expects them, tools and their results included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgetok.dialect.detect import Dialect
from edgetok.dialect.families import CallFormat
from edgetok.dialect.tool import Tool
from edgetok.errors import OptionError

_PROMPT = """You can call these tools, one JSON object each:
{tools}

To call a tool, answer with exactly this, and with nothing after it:
{call}
Its result comes with the next message."""
_RESULT = "<tool_response>\n{content}\n</tool_response>"
_MISTRAL_ID = 9  # characters; its templates refuse others


def messages_for(
    dialect: Dialect, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """Return messages that the template of a dialect can write.

    What the template does not write itself is put into the text: tools into the first message,
    calls into the assistant's, results into the user's.

    Args:
        dialect: dialect of the model.
        messages: with "role" and "content"; the assistant's may have "tool_calls" and
            "reasoning_content", a tool's "tool_call_id". Arguments may be JSON text or values.
        tools: that can be called.

    Raises:
        OptionError: a call in the messages is incomplete.
    """
    written = [_message(dialect, message) for message in messages]
    if tools and dialect.calls.attached:
        _with_system(written)["tools"] = json.dumps([t.json["function"] for t in tools])
    elif tools and not dialect.writes_tools:
        _explain(dialect.calls, written, tools)
    return written


def written_calls(calls: CallFormat, made: Sequence[tuple[str, object]]) -> str:
    """Return calls as the model would have written them.

    Args:
        calls: the format.
        made: names and arguments.
    """
    texts = [
        f"{calls.before_name}{name}{calls.before_arguments}"
        f"{json.dumps(arguments, ensure_ascii=False)}{calls.after}"
        for name, arguments in made
    ]
    between = calls.between
    if between is None:
        between = "\n"
    return calls.begin + between.join(texts) + calls.end


def _message(dialect: Dialect, message: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(message)
    if found.get("content") is None:
        found["content"] = ""
    if "reasoning" in found:
        found.setdefault("reasoning_content", found.pop("reasoning"))
    short = dialect.calls.name.startswith("mistral")
    if found.get("tool_calls"):
        calls = [_call(call, short) for call in found["tool_calls"]]
        if dialect.writes_calls:
            found["tool_calls"] = calls
        else:
            del found["tool_calls"]
            made = [(c["function"]["name"], c["function"]["arguments"]) for c in calls]
            text = written_calls(dialect.calls, made)
            found["content"] = f"{found['content']}\n{text}" if found["content"] else text
    else:
        found.pop("tool_calls", None)
    if found.get("role") == "tool":
        if short and "tool_call_id" in found:
            found["tool_call_id"] = _short(str(found["tool_call_id"]))
        if not dialect.writes_results:
            found = {"role": "user", "content": _RESULT.format(content=found["content"])}
    return found


def _call(given: object, short: bool) -> dict[str, Any]:
    """Return one call, its arguments as values: templates turn them into text."""
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise OptionError(f"a tool call in the messages is {given!r:.80}, expected one with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise OptionError(
                f"the arguments of a call of {function['name']!r:.80} in the messages are not JSON"
            ) from error
    made: dict[str, Any] = {"name": function["name"], "arguments": arguments}
    call_id = str(given.get("id") or "") if isinstance(given, Mapping) else ""
    return {"id": _short(call_id) if short else call_id, "type": "function", "function": made}


def _short(call_id: str) -> str:
    """Return an id of the length that Mistral's templates want."""
    if len(call_id) == _MISTRAL_ID and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:_MISTRAL_ID]


def _with_system(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the system message, which is made where there is none."""
    if not messages or messages[0].get("role") not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": ""})
    return messages[0]


def _explain(calls: CallFormat, messages: list[dict[str, Any]], tools: Sequence[Tool]) -> None:
    """Describe the tools in the first message: the user's for families without another."""
    listed = "\n".join(json.dumps(tool.json["function"], ensure_ascii=False) for tool in tools)
    example = written_calls(calls, [("NAME", {"ARGUMENT": "VALUE"})])
    text = _PROMPT.format(tools=listed, call=example)
    users = [message for message in messages if message.get("role") == "user"]
    first = users[0] if calls.name == "gemma" and users else _with_system(messages)
    content = first.get("content")
    if isinstance(content, str):
        first["content"] = f"{text}\n\n{content}" if content else text
    elif isinstance(content, list):
        first["content"] = [{"type": "text", "text": text + "\n\n"}, *content]
