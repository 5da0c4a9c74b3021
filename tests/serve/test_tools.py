"""Tools and reasoning in every protocol: the bundled model is held to calls by the grammar, and a
model that answers by a rule writes exactly what a test wants to see taken apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.fake import CHATML
from tests.serve.conftest import Process, Rule
from tests.serve.writing import written

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA},
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
SAID: Any = [{"role": "user", "content": "What is the weather?"}]


@pytest.fixture
def client(server: Process) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as made:
        yield made


TWO = (
    "One moment. <tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rom", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_arguments_always_match(client: Any, choice: Any) -> None:
    """On the bundled model, which knows nothing of tools, at a high temperature."""
    for seed in range(3):
        found = client.chat.completions.create(
            model="tiny",
            messages=SAID,
            tools=[WEATHER],
            tool_choice=choice,
            seed=seed,
            temperature=1.5,
            max_tokens=400,
            parallel_tool_calls=False,
        )
        answer = found.choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        (call,) = answer.message.tool_calls
        assert call.id
        assert (call.type, call.function.name) == ("function", "weather")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_deltas(client: Any) -> None:
    """An index in each; id, type and name once; then pieces of arguments only."""
    stream = client.chat.completions.create(
        model="tiny",
        messages=SAID,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        stream=True,
        max_tokens=400,
    )
    chunks = [chunk.choices[0] for chunk in stream]
    calls = [one.delta.tool_calls[0] for one in chunks if one.delta.tool_calls]
    assert all(call.index == 0 for call in calls)
    first, *rest = calls
    assert first.id
    assert (first.type, first.function.name, first.function.arguments) == (
        "function",
        "weather",
        "",
    )
    assert len(rest) > 1
    assert not any(call.id or call.type or call.function.name for call in rest)
    jsonschema.validate(json.loads("".join(c.function.arguments for c in rest)), SCHEMA)
    assert chunks[-1].finish_reason == "tool_calls"
    assert [one.finish_reason for one in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.fixture
def calling(rule: Callable[..., Rule]) -> Rule:
    template = CHATML + "{# <tool_call> #}"
    return rule(rule=written(TWO), template=template, context_tokens=4000)


def test_text_and_parallel_calls(calling: Rule) -> None:
    found = calling.chat("x", tools=[WEATHER, CLOCK]).json()["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"].strip() == "One moment."
    calls = found["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "clock"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Rom", "days": 2}
    assert len({call["id"] for call in calls}) == 2
    client = openai.OpenAI(base_url=calling.url + "/v1", api_key="x", max_retries=0)
    body: Any = {"model": "fake", "messages": SAID, "tools": [WEATHER, CLOCK]}
    with client, client.chat.completions.stream(**body) as stream:
        final = stream.get_final_completion()
    made = final.choices[0].message.tool_calls
    assert [(call.index, call.function.name) for call in made] == [(0, "weather"), (1, "clock")]


@pytest.mark.parametrize(
    ("stop", "text", "calls"),
    [
        ('"days"', "One moment.", 2),
        ("\n", "One moment.", 2),
        ("}", "One moment.", 2),
        ("moment", "One", 0),
        ("<tool_call>", "One moment.", 0),
    ],
)
def test_a_stop_text_cuts_no_call(calling: Rule, stop: str, text: str, calls: int) -> None:
    """Arguments are whole: a file that is to be written may have any text in it."""
    for stream in (False, True):
        body: Any = {"model": "fake", "messages": SAID, "tools": [WEATHER, CLOCK], "stop": stop}
        with openai.OpenAI(base_url=calling.url + "/v1", api_key="x", max_retries=0) as client:
            if stream:
                with client.chat.completions.stream(**body) as made:
                    found = made.get_final_completion().choices[0]
            else:
                found = client.chat.completions.create(**body).choices[0]
        assert (found.message.content or "").strip() == text
        assert found.finish_reason == ("tool_calls" if calls else "stop")
        made_calls = found.message.tool_calls or []
        assert [one.function.name for one in made_calls] == ["weather", "clock"][:calls]
        for one in made_calls[:1]:
            assert json.loads(one.function.arguments) == {"city": "Rom", "days": 2}


@pytest.mark.parametrize("name", ["none", "auto", "required"])
def test_a_tool_that_is_called_like_a_choice(server: Process, name: str) -> None:
    """It is not taken for the choice."""
    tool = {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for path, fields in (
        ("chat/completions", {"tool_choice": {"type": "function", "function": {"name": name}}}),
        ("responses", {"tool_choice": {"type": "function", "name": name}, "input": "Hi"}),
        ("messages", {"tool_choice": {"type": "tool", "name": name}, "max_tokens": 9}),
    ):
        tools: list[Any] = [tool]
        if path == "responses":
            tools = [{"type": "function"} | tool["function"]]
        elif path == "messages":
            tools = [{"name": name, "input_schema": SCHEMA}]
        response = server.post(f"/v1/{path}", **({"messages": SAID, "tools": tools} | fields))
        assert response.status_code == 400
        assert "rename it" in response.json()["error"]["message"]


def test_none_and_results(calling: Rule) -> None:
    free = calling.chat("x", tools=[WEATHER, CLOCK], tool_choice="none").json()["choices"][0]
    assert free["finish_reason"] == "stop"
    assert "tool_calls" not in free["message"]
    answer = calling.chat("x", tools=[WEATHER, CLOCK]).json()["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        for call in answer["tool_calls"]
    ]
    messages = [*SAID, answer, *results]
    again = calling.post("/v1/chat/completions", messages=messages, tools=[WEATHER, CLOCK])
    assert again.status_code == 200


def test_anthropic(calling: Rule, server: Process) -> None:
    tools: Any = [
        {"name": "weather", "description": "The weather.", "input_schema": SCHEMA},
        {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
    ]
    with anthropic.Anthropic(base_url=calling.url, api_key="x", max_retries=0) as client:
        found = client.messages.create(model="fake", max_tokens=900, messages=SAID, tools=tools)
        assert [block.type for block in found.content] == ["text", "tool_use", "tool_use"]
        assert found.stop_reason == "tool_use"
        assert found.content[1].input == {"city": "Rom", "days": 2}
        with client.messages.stream(
            model="fake", max_tokens=900, messages=SAID, tools=tools
        ) as stream:
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
        assert final.content[1].input == {"city": "Rom", "days": 2}
        assert final.content[2].input == {}
        assert final.stop_reason == "tool_use"
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
            for block in final.content[1:]
        ]
        said = [
            *SAID,
            {"role": "assistant", "content": [block.to_dict() for block in final.content]},
            {"role": "user", "content": results},
        ]
        assert client.messages.create(model="fake", max_tokens=900, messages=said, tools=tools)
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            found = client.messages.create(
                model="tiny",
                max_tokens=500,
                messages=SAID,
                tools=tools[:1],
                tool_choice=choice | {"disable_parallel_tool_use": True},
            )
            (block,) = [one for one in found.content if one.type == "tool_use"]
            jsonschema.validate(block.input, SCHEMA)


def test_responses(calling: Rule) -> None:
    tools: Any = [{"type": "web_search"}] + [
        {"type": "function", "strict": True, **one["function"]} for one in (WEATHER, CLOCK)
    ]
    with openai.OpenAI(base_url=calling.url + "/v1", api_key="x", max_retries=0) as client:
        found = client.responses.create(model="fake", input="x", tools=tools)
        assert [item.type for item in found.output] == ["message", "function_call", "function_call"]
        events = list(client.responses.create(model="fake", input="x", tools=tools, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        added = [event for event in events if event.type == "response.output_item.added"]
        assert [(one.output_index, one.item.type) for one in added] == [
            (0, "message"),
            (1, "function_call"),
            (2, "function_call"),
        ]
        done = [one for one in events if one.type == "response.function_call_arguments.done"]
        assert json.loads(done[0].arguments) == {"city": "Rom", "days": 2}
        final = events[-1].response
        assert [item.type for item in final.output] == [item.type for item in found.output]
        items = [
            {"role": "user", "content": "x"},
            *(item.to_dict() for item in final.output),
            *(
                {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
                for item in final.output[1:]
            ),
        ]
        assert client.responses.create(model="fake", input=items, tools=tools).status


def test_reasoning_is_apart(rule: Callable[..., Rule]) -> None:
    template = CHATML + "{# </think> #}"
    api = rule(rule=written("<think>\nWell, well.\n</think>\n\nYes."), template=template)
    found = api.chat("x").json()["choices"][0]["message"]
    assert (found["reasoning_content"], found["content"]) == ("Well, well.", "Yes.")
    with openai.OpenAI(base_url=api.url + "/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="fake", messages=SAID, stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        thought = "".join(getattr(one, "reasoning_content", None) or "" for one in deltas)
        assert thought.strip() == "Well, well."
        assert "".join(one.content or "" for one in deltas) == "Yes."
        items = client.responses.create(model="fake", input="x").output
        assert [item.type for item in items] == ["reasoning", "message"]
        events = list(client.responses.create(model="fake", input="x", stream=True))
        assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
        assert events[-1].response.output_text == "Yes."
    other = anthropic.Anthropic(base_url=api.url, api_key="x", max_retries=0)
    with other, other.messages.stream(model="fake", max_tokens=99, messages=SAID) as stream:
        blocks = stream.get_final_message().content
    assert [block.type for block in blocks] == ["thinking", "text"]
    assert blocks[0].thinking.strip() == "Well, well."


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("arguments", ["{", "3", json.dumps('{"city": "Rome"}')])
def test_arguments_of_earlier_calls_are_one_object(
    server: Process, path: str, arguments: str
) -> None:
    """The last ones are text that holds JSON: parsed twice they would pass."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": arguments}
    if path.endswith("responses"):
        response = server.post(path, input=[*SAID, item])
        place = "input.1"
    else:
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        response = server.post(path, messages=[*SAID, answer])
        place = "messages.1.tool_calls"
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == place
    assert "the arguments of 'f' are" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "computer"}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "other"}, None),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": "weather"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": ["name"]}}, "tool_choice.function"),
        (
            {"tool_choice": {"type": "function", "function": {"name": 5}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "required"}, None),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "object", "not": {}}},
                    }
                ]
            },
            None,
        ),
    ],
)
def test_refused(server: Process, fields: dict[str, Any], param: str | None) -> None:
    response = server.chat("Hi", **fields)
    assert response.status_code == 400, response.text
    assert param is None or response.json()["error"]["param"] == param
