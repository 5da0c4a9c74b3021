"""`/v1/chat/completions` as clients see it: the official package, and bytes on the wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import edgetok
from edgetok.models.bundled import bundled_model
from tests.fake import CHATML
from tests.serve.conftest import Process, Rule

openai = pytest.importorskip("openai")
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(server: Process) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def loud(rule: Callable[..., Rule]) -> Rule:
    return rule()


def chunks(api: Rule, **body: Any) -> list[Any]:
    """Data of all events of a stream, the last of them "[DONE]"."""
    response = api.chat("hello", stream=True, **body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def test_the_openai_package(client: Any) -> None:
    said = [{"role": "user", "content": "Tell me a story."}]
    whole = client.chat.completions.create(
        model="tiny", messages=said, temperature=0, max_tokens=20
    )
    assert whole.object == "chat.completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 20
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20
    stream = client.chat.completions.create(
        model="tiny",
        messages=said,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    parts = list(stream)
    assert len({(part.id, part.created, part.model) for part in parts}) == 1
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts[:-1])
    assert text == whole.choices[0].message.content
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    assert all(part.usage is None for part in parts[:-1])


def test_the_same_answer_as_python(server: Process) -> None:
    with edgetok.load(bundled_model()) as model:
        text = model.chat(
            [{"role": "user", "content": "Who are you?"}], temperature=0.0, max_tokens=30
        ).text
    found = server.chat("Who are you?", temperature=0, max_tokens=30).json()
    assert found["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("seed", [1, -1, 2**63])
def test_a_seed(server: Process, seed: int) -> None:
    texts = {
        server.chat("Hi", seed=seed, max_tokens=20).json()["choices"][0]["message"]["content"]
        for _ in range(2)
    }
    assert len(texts) == 1


def test_the_async_client(server: Process) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x") as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": f"Tell me of {i} dogs."}],
                    temperature=0,
                    max_tokens=12,
                    stream=True,
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one(i) for i in range(8)))

    alone = [
        server.chat(f"Tell me of {i} dogs.", temperature=0, max_tokens=12).json() for i in range(8)
    ]
    expected = [one["choices"][0]["message"]["content"] for one in alone]
    assert asyncio.run(ask()) == expected


def test_chunks(loud: Rule) -> None:
    found = chunks(loud)
    assert len({(one["id"], one["created"]) for one in found}) == 1
    assert {one["object"] for one in found} == {"chat.completion.chunk"}
    assert {one["model"] for one in found} == {"fake"}
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in found)
    assert text == "1:HELLO!"
    reasons = [one["choices"][0]["finish_reason"] for one in found]
    assert reasons == [None] * (len(found) - 1) + ["stop"]
    assert not any("usage" in one for one in found)


def test_usage_comes_when_it_is_asked_for_and_last(loud: Rule) -> None:
    found = chunks(loud, stream_options={"include_usage": True})
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 9
    assert all(one["usage"] is None for one in found[:-1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "AB"),
        ("ünïcödé 🦜", "ÜNÏCÖDÉ 🦜"),
        ("", ""),
    ],
)
def test_content(loud: Rule, content: Any, said: str) -> None:
    messages = [{"role": "user", "content": content}]
    found = loud.chat("", messages=messages).json()
    assert found["choices"][0]["message"]["content"] == f"1:{said}!"
    streamed = chunks(loud, messages=messages)
    pieces = [one["choices"][0]["delta"].get("content", "") for one in streamed]
    assert "".join(pieces) == f"1:{said}!"
    assert not any("�" in piece for piece in pieces)


def test_an_image_is_refused_and_named(loud: Rule) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    content = [{"type": "text", "text": "a"}, part]
    response = loud.chat("", messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages.0.content.1"
    assert "image_url" in error["message"]


def test_roles_and_null_content(loud: Rule) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "assistant", "content": "x", "reasoning": "hm"},
        {"role": "user", "content": "two"},
    ]
    found = loud.chat("", messages=messages).json()
    assert found["choices"][0]["message"]["content"] == "brief:3:TWO!"


def test_reasoning_is_read_in_both_spellings(rule: Callable[..., Rule]) -> None:
    """The template gets that of earlier answers, whatever the client calls it."""
    thought = "{{ m['reasoning_content'] | default('') }}"
    template = CHATML.replace("{{ '<|im_start|>'", thought + "{{ '<|im_start|>'", 1)
    api = rule(template=template)

    def read(**given: str) -> int:
        answer = {"role": "assistant", "content": "x"} | given
        found = api.chat("", messages=[*USER, answer, *USER], max_tokens=1).json()
        return int(found["usage"]["prompt_tokens"])

    for name in ("reasoning_content", "reasoning"):
        assert read(**{name: "Well, well."}) == read() + len("Well, well.")


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 3}, 3),
        ({"max_tokens": 5, "max_completion_tokens": 3}, 3),
        ({"max_tokens": None, "max_completion_tokens": None, "temperature": None}, 9),
        ({"max_tokens": -1, "stop": None, "n": None, "seed": None, "tools": None}, 9),
    ],
)
def test_limits(loud: Rule, fields: dict[str, Any], tokens: int) -> None:
    found = loud.chat("hello", **fields).json()
    assert found["usage"]["completion_tokens"] == tokens
    assert found["choices"][0]["finish_reason"] == ("length" if tokens == 3 else "stop")


@pytest.mark.parametrize(
    ("stop", "text"),
    [("LLO", "1:HE"), (["zz", "LO!"], "1:HEL"), (["!!", "LX"], "1:HELLO!"), ("🦜", "1:HELLO!")],
)
def test_stop_text_across_tokens(loud: Rule, stop: Any, text: str) -> None:
    """It is held back while it may come, and the tail is not lost where it does not."""
    assert loud.chat("hello", stop=stop).json()["choices"][0]["message"]["content"] == text
    found = chunks(loud, stop=stop)
    pieces = "".join(one["choices"][0]["delta"].get("content", "") for one in found)
    assert pieces == text
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_several_answers(loud: Rule) -> None:
    found = loud.chat("hello", n=3).json()
    assert [one["index"] for one in found["choices"]] == [0, 1, 2]
    assert {one["message"]["content"] for one in found["choices"]} == {"1:HELLO!"}
    assert found["usage"]["completion_tokens"] == 27
    streamed = chunks(loud, n=3)
    for i in range(3):
        mine = [one["choices"][0] for one in streamed if one["choices"][0]["index"] == i]
        assert "".join(one["delta"].get("content", "") for one in mine) == "1:HELLO!"
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == ["stop"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 10**6}, "n", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
        (
            {"messages": [*USER, {"role": "assistant", "audio": {"id": "a"}}]},
            "messages.1.audio",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            "messages.0.function_call",
            "unsupported_parameter",
        ),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 101}, "temperature", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"stop": ["x"] * 100}, "stop", "invalid_value"),
        ({"chat_template": "{{ 'a' * 10**10 }}"}, "chat_template", "unsupported_parameter"),
        (
            {"chat_template_kwargs": {"messages": "x"}},
            "chat_template_kwargs",
            "unsupported_parameter",
        ),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refused_by_name(loud: Rule, fields: Any, param: Any, code: Any, stream: bool) -> None:
    response = loud.chat("hello", stream=stream, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("temperature", [0, 2, 2.5, 100])
def test_temperatures(loud: Rule, temperature: float) -> None:
    """OpenAI ends at 2. Here more is useful with `min_p`, and does no harm."""
    found = loud.chat("hello", temperature=temperature, min_p=1.0).json()
    assert found["choices"][0]["message"]["content"] == "1:HELLO!"


def test_unknown_fields_are_named(loud: Rule) -> None:
    response = loud.chat("hello", user="me", metadata={}, cache_prompt=True, wonder=1)
    assert response.status_code == 200
    assert response.headers["x-edgetok-ignored"] == "cache_prompt, wonder"


def test_the_context(rule: Callable[..., Rule]) -> None:
    """A prompt that does not fit is refused with counts; an answer that does not is "length"."""
    api = rule(context_tokens=60)
    response = api.chat("x" * 100)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "the context holds 60" in error["message"]
    with openai.OpenAI(base_url=api.url + "/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": "x" * 100}], stream=True
            )
        assert raised.value.code == "context_length_exceeded"
    found = api.chat("x" * 30, max_tokens=100).json()
    assert found["choices"][0]["finish_reason"] == "length"


def test_an_error_in_the_middle_of_a_stream(
    rule: Callable[..., Rule], caplog: pytest.LogCaptureFixture
) -> None:
    left = [5]

    def breaks(tokens: list[int]) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("a secret of this machine")
        return 65

    api = rule(rule=breaks)
    with openai.OpenAI(base_url=api.url + "/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="fake", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="internal error") as raised:
            list(stream)
    assert "secret" not in str(raised.value)
    failed = api.chat("x")
    assert failed.status_code == 500
    assert f"request {failed.headers['x-request-id']}: " in caplog.text
    left[0] = 1000
    assert api.chat("x", max_tokens=3).status_code == 200


def test_headers_first_and_comments_while_the_prompt_is_read(rule: Callable[..., Rule]) -> None:
    import time

    api = rule(step_s=0.2)
    body = {
        "model": "fake",
        "stream": True,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "x" * 800}],
    }
    begun = time.monotonic()
    with httpx.stream("POST", api.url + "/v1/chat/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(":")
        first_s = time.monotonic() - begun
        rest = list(lines)
    assert first_s < 0.3 * (time.monotonic() - begun)
    comments = [line for line in rest if line.startswith(":")]
    first = next(i for i, line in enumerate(rest) if line.startswith("data"))
    assert comments
    assert rest.index(comments[0]) < first


def test_background_waits_for_interactive(rule: Callable[..., Rule]) -> None:
    import threading

    api = rule(step_s=0.5, server={"parallel": 1})  # the first is still running when all wait
    order: list[str] = []

    def ask(tier: str) -> None:
        api.chat("x" * 60, service_tier=tier)
        order.append(tier)

    threads = []
    for i, tier in enumerate(("first", "flex", "flex", "auto")):
        threads.append(threading.Thread(target=ask, args=(tier,)))
        threads[-1].start()
        api.wait_until("running", 1)  # or another could begin before the first
        api.wait_until("waiting", i)
    api.model.backend.step_s = 0.0
    for thread in threads:
        thread.join(30)
    assert order == ["first", "auto", "flex", "flex"]
