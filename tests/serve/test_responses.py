"""`/v1/responses` as OpenAI's package sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serve.conftest import Rule

openai = pytest.importorskip("openai")


@pytest.fixture
def loud(rule: Callable[..., Rule]) -> Iterator[Any]:
    api = rule()
    with openai.OpenAI(base_url=api.url + "/v1", api_key="x", max_retries=0) as client:
        yield client


def test_whole(loud: Any) -> None:
    found = loud.responses.create(model="fake", input="hello", instructions="brief")
    assert (found.object, found.status, found.model) == ("response", "completed", "fake")
    assert found.output_text == "brief:1:HELLO!"
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.store is False
    cut = loud.responses.create(model="fake", input="hello", max_output_tokens=3)
    assert (cut.status, cut.output_text) == ("incomplete", "1:H")
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_tokens_are_counted(loud: Any) -> None:
    found = loud.responses.create(model="fake", input="hello", instructions="brief")
    count = loud.responses.input_tokens.count(model="fake", input="hello", instructions="brief")
    assert count.object == "response.input_tokens"
    assert count.input_tokens == found.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        loud.responses.input_tokens.count(model="gpt", input="hello")


def test_items(loud: Any) -> None:
    items = [
        {"role": "developer", "content": "br"},
        {"role": "user", "content": [{"type": "input_text", "text": "o"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "x", "annotations": []}],
        },
        {"role": "user", "content": "two"},
    ]
    assert loud.responses.create(model="fake", input=items).output_text == "br:3:TWO!"


def test_events(loud: Any) -> None:
    events = list(loud.responses.create(model="fake", input="hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [kind for kind in kinds if kind != "output_text.delta"] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event.delta for event in deltas) == "1:HELLO!"
    assert {(one.output_index, one.content_index) for one in deltas} == {(0, 0)}
    assert len({one.item_id for one in deltas}) == 1
    done = next(event for event in events if event.type == "response.output_text.done")
    assert done.text == "1:HELLO!"
    assert events[-1].response.output_text == "1:HELLO!"
    assert events[-1].response.id == events[0].response.id
    assert events[-1].response.usage.output_tokens == 9


def test_the_stream_helper(loud: Any) -> None:
    with loud.responses.stream(model="fake", input="hello") as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert (final.output_text, final.status) == ("1:HELLO!", "completed")


def test_a_stream_that_is_cut(loud: Any) -> None:
    events = list(
        loud.responses.create(model="fake", input="hello", max_output_tokens=3, stream=True)
    )
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


def test_tools_that_are_not_functions_are_skipped(loud: Any) -> None:
    found = loud.responses.create(
        model="fake", input="hello", tools=[{"type": "web_search"}, {"type": "local_shell"}]
    )
    assert found.output_text == "1:HELLO!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"reasoning": {"effort": ["low"]}}, "reasoning.effort"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        ({"tool_choice": {"type": "function", "function": "f"}}, "tool_choice.function"),
        ({"input": [{"role": "user", "content": [{"type": 5}]}]}, "input.0.content.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
    ],
)
def test_refused(loud: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        loud.responses.create(**({"model": "fake", "input": "x"} | fields))
    assert raised.value.param == param


def test_an_error_in_the_middle_of_a_stream(rule: Callable[..., Rule]) -> None:
    left = [3]

    def breaks(tokens: list[int]) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError
        return 65

    api = rule(rule=breaks)
    with openai.OpenAI(base_url=api.url + "/v1", api_key="x", max_retries=0) as client:
        events = list(client.responses.create(model="fake", input="hello", stream=True))
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert "internal error" in events[-2].message
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.message == events[-2].message
