"""One conversation in the words of three protocols is one conversation to the model."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("uvicorn")

from edgetok.serve.protocols.chat_completions import ChatCompletions
from edgetok.serve.protocols.messages import Messages
from edgetok.serve.protocols.responses import Responses

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "brief"},
    {"role": "user", "content": "Rome and Bonn?"},
    {
        "role": "assistant",
        "content": "One moment.",
        "reasoning_content": "Two calls.",
        "tool_calls": [
            {"id": name, "type": "function", "function": {"name": "f", "arguments": {"city": name}}}
            for name in ("Rome", "Bonn")
        ],
    },
    {"role": "tool", "tool_call_id": "Bonn", "content": "rain"},
    {"role": "tool", "tool_call_id": "Rome", "content": "sun"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "g", "arguments": {}}}
    ]},
    {"role": "tool", "tool_call_id": "c", "content": "ok"},
    {"role": "assistant", "content": "Done.", "reasoning_content": "Say so."},
    {"role": "user", "content": "Thanks"},
]  # fmt: skip


def _said(name: str, kind: str) -> list[dict[str, Any]]:
    return [{"type": kind, "text": name}]


CHAT = {
    "messages": [
        *MESSAGES[:5],
        MESSAGES[5] | {"content": None},
        *MESSAGES[6:],
    ]
}
RESPONSES = {
    "instructions": "brief",
    "input": [
        {"role": "user", "content": _said("Rome and Bonn?", "input_text")},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": _said("Two calls.", "reasoning_text"),
        },
        {"type": "message", "role": "assistant", "content": _said("One moment.", "output_text")},
        {"type": "function_call", "call_id": "Rome", "name": "f", "arguments": '{"city": "Rome"}'},
        {"type": "function_call", "call_id": "Bonn", "name": "f", "arguments": '{"city": "Bonn"}'},
        {"type": "function_call_output", "call_id": "Bonn", "output": "rain"},
        {"type": "function_call_output", "call_id": "Rome", "output": "sun"},
        {"type": "function_call", "call_id": "c", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c", "output": "ok"},
        {"type": "reasoning", "summary": [], "content": _said("Say so.", "reasoning_text")},
        {"type": "message", "role": "assistant", "content": _said("Done.", "output_text")},
        {"role": "user", "content": "Thanks"},
    ],
}
ANTHROPIC = {
    "max_tokens": 9,
    "system": [{"type": "text", "text": "brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Rome and Bonn?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Two calls.", "signature": ""},
                {"type": "text", "text": "One moment."},
                *(
                    {"type": "tool_use", "id": name, "name": "f", "input": {"city": name}}
                    for name in ("Rome", "Bonn")
                ),
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "Bonn", "content": "rain"},
                {"type": "tool_result", "tool_use_id": "Rome", "content": _said("sun", "text")},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "c", "name": "g", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c", "content": "ok"}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Say so.", "signature": ""},
                {"type": "text", "text": "Done."},
            ],
        },
        {"role": "user", "content": "Thanks"},
    ],
}


@pytest.mark.parametrize(
    ("protocol", "body"),
    [(ChatCompletions(), CHAT), (Responses(), RESPONSES), (Messages(), ANTHROPIC)],
    ids=["chat", "responses", "messages"],
)
def test_the_same_messages(protocol: Any, body: dict[str, Any]) -> None:
    assert list(protocol.parse({"model": "m"} | body).request.messages) == MESSAGES
