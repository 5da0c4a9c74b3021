"""Tools, reasoning and schemas through `Model.chat`, over a model that writes what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgetok
from edgetok.dialect.options import request_of
from edgetok.dialect.tool import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ReasoningPiece,
    TextPiece,
    Tool,
)
from edgetok.model import Model
from tests.dialect.templates import template
from tests.fake import END, fake_model

HELLO = [{"role": "user", "content": "hello"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Says it", "parameters": PARAMETERS},
}
CLOCK = Tool(name="clock")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn", "days": 2}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
ASK = "<|im_start|>assistant\n"

Writes = Callable[..., Model]


@pytest.fixture
def writes(tmp_path: Path) -> Writes:
    """Make a model that wants to write a text; a mask may make it write another one."""

    usual = template("chatml", "hermes", "switch")

    def make(text: str, source: str = usual, **options: Any) -> Model:
        made: list[Model] = []

        def rule(tokens: list[int]) -> int:
            model = made[0]
            written = model.tokenizer.decode(tokens, special=True).rpartition(ASK)[2]
            wanted = text.encode()
            done = len(written.encode())
            if written.startswith("<think>\n\n</think>\n\n") and not text.startswith("<think>"):
                done -= len("<think>\n\n</think>\n\n")
            if done >= len(wanted):
                return END
            return model.tokenizer.encode(wanted[done : done + 1].decode("latin-1"))[0]

        made.append(fake_model(tmp_path / "m", rule=rule, template=source, **options))
        return made[0]

    return make


# Tools


def test_a_call_in_the_middle_of_text(writes: Writes) -> None:
    model = writes("Let me see.\n" + CALL)
    result = model.chat(HELLO, tools=[WEATHER, CLOCK])
    (call,) = result.tool_calls
    assert (call.name, call.values) == ("weather", {"city": "Bonn", "days": 2})
    assert call.id.startswith("call_")
    assert (result.text, result.finish, result.complete) == ("Let me see.", "stop", True)


def test_pieces_of_calls_come_as_they_are_written(writes: Writes) -> None:
    second = CALL.replace("Bonn", "Ulm")
    model = writes(CALL + "\n" + second)
    pieces = list(model.stream_chat(HELLO, tools=[WEATHER]).pieces())
    begins = [piece for piece in pieces if isinstance(piece, CallBegin)]
    assert [(piece.index, piece.name) for piece in begins] == [(0, "weather"), (1, "weather")]
    assert len({piece.id for piece in begins}) == 2
    assert not any(isinstance(piece, TextPiece) for piece in pieces)
    for index, city in enumerate(("Bonn", "Ulm")):
        parts = [p for p in pieces if isinstance(p, CallArguments) and p.index == index]
        assert len(parts) > 10  # a token each
        assert json.loads("".join(part.text for part in parts))["city"] == city
        place = pieces.index(begins[index])
        assert pieces[place + 1 : place + 1 + len(parts)] == parts


def test_asynchronous_pieces_are_the_same(writes: Writes) -> None:
    model = writes("<think>\nhm\n</think>\n\nSo:" + CALL)

    async def read() -> list[AnswerPiece]:
        async with model.stream_chat(HELLO, tools=[WEATHER]) as answer:
            found = [piece async for piece in answer.pieces_async()]
            assert answer.result.reasoning == "hm"
            return found

    def known(pieces: list[AnswerPiece]) -> list[Any]:
        return [(p.index, p.name) if isinstance(p, CallBegin) else p for p in pieces]

    found = asyncio.run(read())
    assert known(found) == known(list(model.stream_chat(HELLO, tools=[WEATHER]).pieces()))

    async def text() -> str:
        return "".join([piece async for piece in model.stream_chat(HELLO, tools=[WEATHER])])

    assert asyncio.run(text()) == "".join(model.stream_chat(HELLO, tools=[WEATHER])) == "So:"


@pytest.mark.parametrize("wants", [CALL.replace('"days": 2', '"days": 99, "x": 1'), "No.", CALL])
@pytest.mark.parametrize("choice", ["required", "weather", "clock"])
def test_choices_hold_whatever_the_model_wants(writes: Writes, wants: str, choice: str) -> None:
    result = writes(wants).chat(
        HELLO, tools=[WEATHER, CLOCK], tool_choice=choice, max_tokens=300, effort="none"
    )
    if not result.complete:
        assert result.finish == "length"
        return
    assert result.text == ""
    for call in result.tool_calls:
        assert call.name == (choice if choice != "required" else call.name)
        if call.name == "weather":
            assert call.values["city"]
            assert call.values.get("days", 0) <= 9
            assert call.values.keys() <= {"city", "days"}


def test_none_is_text_and_the_model_does_not_see_the_tools(writes: Writes) -> None:
    model = writes(CALL)
    answer = model.stream_chat(HELLO, tools=[WEATHER], tool_choice="none")
    result = answer.run()
    assert (result.text, result.tool_calls) == (CALL, ())
    prompts = [
        model.chat(HELLO, tools=tools, tool_choice=choice).stats.prompt_tokens
        for tools, choice in ([[WEATHER], "none"], [None, "auto"], [[WEATHER], "auto"])
    ]
    assert prompts[0] == prompts[1] < prompts[2] - 50


def test_one_call_where_parallel_ones_are_off(writes: Writes) -> None:
    model = writes(CALL + "\n" + CALL)
    assert len(model.chat(HELLO, tools=[WEATHER]).tool_calls) == 2
    assert len(model.chat(HELLO, tools=[WEATHER], parallel_tool_calls=False).tool_calls) == 1


def test_a_cut_call_says_so(writes: Writes) -> None:
    result = writes(CALL).chat(HELLO, tools=[WEATHER], max_tokens=50)
    (call,) = result.tool_calls
    assert (result.finish, result.complete) == ("length", False)
    assert call.arguments == '{"city"'[: len(call.arguments)]
    with pytest.raises(json.JSONDecodeError):
        _ = call.values
    # Cut before it is certain that there is a call: nothing of the marker is text.
    result = writes(CALL).chat(HELLO, tools=[WEATHER], max_tokens=20)
    assert (result.text, result.tool_calls, result.complete) == ("", (), False)


def test_results_are_fed_back(writes: Writes) -> None:
    model = writes(CALL)
    (call,) = model.chat(HELLO, tools=[WEATHER]).tool_calls
    back = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
        ],
    }
    talk = [*HELLO, back, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    request, _ = request_of(talk, {"tools": [WEATHER]})
    prompt = model.speaker.prompt(request)
    assert CALL + "<|im_end|>" in prompt
    assert "<tool_response>\nrain\n</tool_response>" in prompt
    back["tool_calls"] = [{"name": "weather", "arguments": "{"}]
    with pytest.raises(edgetok.OptionError, match="are not JSON"):
        model.chat(talk, tools=[WEATHER])


def test_a_template_without_tools_gets_them_in_its_first_message(writes: Writes) -> None:
    model = writes(CALL, source=template("chatml", "plain", "none"))
    (call,) = model.chat(HELLO, tools=[WEATHER]).tool_calls
    assert call.values["city"] == "Bonn"
    back = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather"}]}
    result = {"role": "tool", "content": "rain"}
    request, _ = request_of([*HELLO, back, result], {"tools": [WEATHER]})
    prompt = model.speaker.prompt(request)
    assert '"description": "Says it"' in prompt.partition("user")[0]
    assert '{"name": "weather", "arguments": {}}' in prompt
    assert "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>" in prompt


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tools": [{"name": "a b"}]}, "a tool is named 'a b'"),
        ({"tools": [{"type": "web_search"}]}, "expected one of type 'function'"),
        ({"tools": [CLOCK, CLOCK]}, "two tools are named 'clock'"),
        ({"tools": [Tool(name=f"t{i}") for i in range(200)]}, "200 tools were given"),
        ({"tools": [CLOCK], "tool_choice": "weather"}, "tool_choice is 'weather'"),
        ({"tool_choice": "required"}, "no tools were given"),
        ({"effort": "great"}, "effort is 'great'"),
        ({"reasoning_tokens": -1}, "reasoning_tokens is -1"),
        ({"tools": [{"name": "a", "parameters": 3}]}, "parameters is not a JSON schema"),
    ],
)
def test_wrong_options(writes: Writes, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(edgetok.OptionError, match=problem):
        writes("x").chat(HELLO, **options)


def test_parameters_that_cannot_be_held_name_their_tool(writes: Writes) -> None:
    tool = {"name": "odd", "parameters": {"type": "object", "not": {}}}
    with pytest.raises(edgetok.GrammarError, match="tool odd: schema: unsupported keyword 'not'"):
        writes("x").chat(HELLO, tools=[tool])


# Reasoning


THOUGHT = "<think>\nFirst this,\nthen that.\n</think>\n\n"


def test_reasoning_is_apart(writes: Writes) -> None:
    model = writes(THOUGHT + "Yes.")
    result = model.chat(HELLO)
    assert (result.reasoning, result.text) == ("First this,\nthen that.", "Yes.")
    pieces = list(model.stream_chat(HELLO).pieces())
    kinds = [type(piece) for piece in pieces]
    assert kinds == sorted(kinds, key=[ReasoningPiece, TextPiece].index)
    assert len(kinds) > 15


@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_a_schema_begins_after_the_reasoning(writes: Writes, tools: Any) -> None:
    model = writes(THOUGHT + '{"a": 1}')
    free = model.chat(HELLO)
    held = model.chat(HELLO, schema=SCHEMA, tools=tools)
    assert held.reasoning == free.reasoning == "First this,\nthen that."
    assert json.loads(held.text) == {"a": 1}
    assert held.complete
    # The same tokens, as far as the reasoning goes.
    assert held.tokens[: len(THOUGHT)] == free.tokens[: len(THOUGHT)]


def test_a_call_after_the_reasoning(writes: Writes) -> None:
    result = writes(THOUGHT.replace("that", CALL) + CALL).chat(HELLO, tools=[WEATHER])
    assert CALL in result.reasoning
    assert [call.values["city"] for call in result.tool_calls] == ["Bonn"]
    assert result.text == ""


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_a_budget_ends_the_reasoning(writes: Writes, schema: Any) -> None:
    endless = "<think>\n" + "hm " * 500
    result = writes(endless).chat(HELLO, reasoning_tokens=40, schema=schema, max_tokens=400)
    thought = result.reasoning
    assert endless.removeprefix("<think>\n").startswith(thought)
    assert 35 <= len(thought) <= 40
    if schema is not None:
        assert json.loads(result.text) == {"a": 1}
    assert "think" not in result.text


def test_efforts(writes: Writes) -> None:
    endless = "<think>\n" + "hm " * 500
    model = writes(endless, context_tokens=4000)
    sizes = [len(model.chat(HELLO, effort=e).reasoning) for e in ("minimal", "low")]  # type: ignore[arg-type]
    assert 120 <= sizes[0] <= 128
    assert 500 <= sizes[1] <= 512


def test_no_effort_uses_the_templates_switch(writes: Writes) -> None:
    model = writes("Yes.")
    result = model.chat(HELLO, effort="none")
    assert (result.reasoning, result.text) == ("", "Yes.")
    request, _ = request_of(HELLO, {"effort": "none"})
    assert model.speaker.prompt(request).endswith("<think>\n\n</think>\n\n")
    # Without a switch the reasoning that a model begins is ended at once.
    model = writes(THOUGHT + "Yes.", source=template("chatml", "hermes", "always"))
    assert model.chat(HELLO, effort="none", max_tokens=40).reasoning == ""


def test_reasoning_that_is_cut(writes: Writes) -> None:
    model = writes(THOUGHT + "Yes.")
    result = model.chat(HELLO, max_tokens=20)
    assert THOUGHT.removeprefix("<think>\n").startswith(result.reasoning)
    assert (result.text, result.finish) == ("", "length")
    result = model.chat(HELLO, max_tokens=20, schema=SCHEMA)
    assert not result.complete


def test_results_have_what_any_result_has(writes: Writes) -> None:
    model = writes(THOUGHT + "Yes.")
    answer = model.stream_chat(HELLO, logprobs=1)
    tokens = list(answer.tokens())
    assert answer.result.logprobs == tuple(tokens)
    assert answer.result.tokens == tuple(token.id for token in tokens)
    assert answer.result.reasoning == "First this,\nthen that."
