"""`/v1/messages` as Anthropic's package sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from tests.serve.conftest import Process, Rule

anthropic = pytest.importorskip("anthropic")
SAID = [{"role": "user", "content": "hello"}]


@pytest.fixture
def loud(rule: Callable[..., Rule]) -> Iterator[Any]:
    api = rule(server={"key": "a long enough key"})
    with anthropic.Anthropic(
        base_url=api.url, api_key="a long enough key", max_retries=0
    ) as client:
        yield client


def test_whole(loud: Any) -> None:
    found = loud.messages.create(model="fake", max_tokens=50, messages=SAID, system="brief")
    assert (found.type, found.role, found.model) == ("message", "assistant", "fake")
    assert found.content[0].text == "brief:1:HELLO!"
    assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)
    assert found.usage.output_tokens == 15
    found = loud.messages.create(model="fake", max_tokens=3, messages=SAID)
    assert (found.content[0].text, found.stop_reason) == ("1:H", "max_tokens")


def test_stream(loud: Any) -> None:
    with loud.messages.stream(model="fake", max_tokens=50, messages=SAID) as stream:
        assert "".join(stream.text_stream) == "1:HELLO!"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 9
    raw = loud.messages.create(model="fake", max_tokens=50, messages=SAID, stream=True)
    kinds = [event.type for event in raw]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_stop_sequence_is_named(loud: Any) -> None:
    for stream in (False, True):
        found: Any = {"model": "fake", "max_tokens": 50, "messages": SAID}
        found["stop_sequences"] = ["zz", "LLO"]
        if stream:
            with loud.messages.stream(**found) as events:
                message = events.get_final_message()
        else:
            message = loud.messages.create(**found)
        assert message.content[0].text == "1:HE"
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "LLO")


def test_blocks(loud: Any) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "x"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "42"},
                {"type": "text", "text": "two"},
            ],
        },
    ]
    system: Any = [{"type": "text", "text": "br", "cache_control": {"type": "ephemeral"}}]
    found = loud.messages.create(model="fake", max_tokens=50, messages=messages, system=system)
    assert found.content[0].text == "br:3:TWO!"  # the result is a turn of the user's here


@pytest.mark.parametrize(("is_error", "seen"), [(True, "ERROR: NO DISK"), (False, "NO DISK")])
def test_the_model_sees_that_a_tool_failed(loud: Any, is_error: bool, seen: str) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "no disk"}
    messages: Any = [
        *SAID,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result | {"is_error": is_error}]},
    ]
    found = loud.messages.create(model="fake", max_tokens=50, messages=messages)
    assert seen in found.content[0].text.split("\n")  # between the signs of the template


def test_an_answer_that_was_begun(loud: Any) -> None:
    """The last message is the assistant's: the answer goes on from it."""
    said: Any = [*SAID, {"role": "assistant", "content": "1:HE"}]
    assert (
        loud.messages.create(model="fake", max_tokens=50, messages=said).content[0].text == "LLO!"
    )


def test_an_image_is_refused(loud: Any) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    content: Any = [{"type": "image", "source": source}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages.0.content.0.*image"):
        loud.messages.create(
            model="fake", max_tokens=5, messages=[{"role": "user", "content": content}]
        )


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([{"type": "thinking", "thinking": "x"}, {"type": "image"}], "0.content.1"),
        (
            [
                {"type": "text", "text": "x"},
                {"type": "tool_result", "tool_use_id": "a", "content": "x"},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "image"}]},
            ],
            "0.content.2.content.0",
        ),
    ],
)
def test_what_is_refused_is_named_by_its_own_place(loud: Any, content: Any, place: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=rf"messages\.{place}: a block of type"):
        loud.messages.create(
            model="fake", max_tokens=5, messages=[{"role": "user", "content": content}]
        )


def test_errors_have_anthropics_shape(loud: Any, rule: Callable[..., Rule]) -> None:
    with pytest.raises(anthropic.NotFoundError) as raised:
        loud.messages.create(model="claude", max_tokens=5, messages=SAID)
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="the context holds"):
        loud.messages.create(
            model="fake", max_tokens=5, messages=[{"role": "user", "content": "x" * 2000}]
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"stop_sequences": ["x"] * 100},
        {"tool_choice": {"type": ["any"]}},
        {"tool_choice": {"type": {}}},
        {"tool_choice": {"type": "tool", "name": ["f"]}},
        {"thinking": {"type": "enabled", "budget_tokens": "many"}},
        {"output_config": {"format": "json"}},
        {"output_config": {"effort": "enormous"}},
        {"output_config": {"effort": ["low"]}},
    ],
)
def test_values_out_of_range_are_named(loud: Any, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(anthropic.BadRequestError, match=name):
        loud.messages.create(**({"model": "fake", "max_tokens": 5, "messages": SAID} | fields))


def test_an_error_in_the_middle_of_a_stream(rule: Callable[..., Rule]) -> None:
    left = [3]

    def breaks(tokens: list[int]) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError
        return 65

    api = rule(rule=breaks)
    with anthropic.Anthropic(base_url=api.url, api_key="x", max_retries=0) as client:
        stream = client.messages.create(model="fake", max_tokens=50, messages=SAID, stream=True)
        with pytest.raises(anthropic.APIError, match="internal error"):
            list(stream)


def test_the_bundled_model(server: Process) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        found = client.messages.create(
            model="tiny",
            max_tokens=30,
            extra_body={"temperature": 0},
            messages=[{"role": "user", "content": "Who are you?"}],
        )
    same = server.chat("Who are you?", temperature=0, max_tokens=30).json()
    assert found.content[0].text == same["choices"][0]["message"]["content"]


def test_tokens_are_counted(loud: Any) -> None:
    found = loud.messages.create(model="fake", max_tokens=50, messages=SAID, system="brief")
    count = loud.messages.count_tokens(model="fake", messages=SAID, system="brief")
    assert count.input_tokens == found.usage.input_tokens + found.usage.cache_read_input_tokens
    with pytest.raises(anthropic.NotFoundError):
        loud.messages.count_tokens(model="claude", messages=SAID)


def test_models_as_the_package_reads_them(loud: Any) -> None:
    found = loud.models.list()
    assert [one.id for one in found] == ["fake"]
    assert (found.first_id, found.last_id, found.has_more) == ("fake", "fake", False)
    one = loud.models.retrieve("fake")
    assert (one.type, one.display_name) == ("model", "fake")
    assert one.created_at.year == 1970
    assert one.max_input_tokens > 100
    with pytest.raises(anthropic.NotFoundError) as refused:
        loud.models.retrieve("claude")
    assert refused.value.type == "not_found_error"
    with pytest.raises(anthropic.NotFoundError) as refused:
        loud.messages.batches.list()
    assert refused.value.type == "not_found_error"


def test_each_response_has_a_name(loud: Any) -> None:
    names = {
        loud.messages.create(model="fake", max_tokens=5, messages=SAID)._request_id
        for _ in range(2)
    }
    assert len(names) == 2
    with pytest.raises(anthropic.NotFoundError) as refused:
        loud.messages.create(model="claude", max_tokens=5, messages=SAID)
    assert refused.value.request_id.startswith("req_")


def test_a_schema(server: Process) -> None:
    pydantic = pytest.importorskip("pydantic")
    pytest.importorskip("llguidance")
    dog = pydantic.create_model("Dog", wild=(bool, ...), kind=(Literal["pup", "old"], ...))
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        found = client.messages.parse(
            model="tiny",
            max_tokens=100,
            messages=[{"role": "user", "content": "Spot is 5."}],
            output_format=dog,
        )
    assert isinstance(found.parsed_output, dog)
