"""Log-probabilities over HTTP, beside those that the model's own logits give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openai
import pytest

import edgetok
from edgetok.models.bundled import bundled_model
from tests.serve.conftest import Process

ASK = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def client(server: Process) -> Any:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as made:
        yield made


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def test_chat(client: Any) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "messages": ASK,
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 3,
    }
    choice = client.chat.completions.create(**options).choices[0]
    found = choice.logprobs.content
    assert "".join(one.token for one in found) == choice.message.content
    assert b"".join(bytes(one.bytes) for one in found).decode() == choice.message.content
    with edgetok.load(bundled_model()) as model:
        tokens = model.tokenizer.encode(_prompt(model), special=False)
        backend, cache = model.engine.backend, model.engine.backend.new_cache(256)
        for one in found:
            rated = log_softmax(backend.forward(cache, np.array(tokens, np.int32)))
            best = np.argsort(-rated)[:3]
            assert one.logprob == pytest.approx(rated[best[0]], abs=1e-3)
            assert [other.logprob for other in one.top_logprobs] == pytest.approx(
                list(rated[best]), abs=1e-3
            )
            assert bytes(one.bytes) == model.tokenizer.piece(int(best[0]))
            tokens = [int(best[0])]
    pieces: list[Any] = []
    text = ""
    for chunk in client.chat.completions.create(**options, stream=True):
        text += chunk.choices[0].delta.content or ""
        pieces += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert text == choice.message.content
    assert pieces == found


def _prompt(model: Any) -> str:
    from edgetok.dialect.request import ChatRequest

    return str(model.speaker.prompt(ChatRequest(messages=tuple(ASK))))


def test_completions(client: Any) -> None:
    whole = client.completions.create(
        model="tiny", prompt="Once", temperature=0, max_tokens=8, logprobs=2
    ).choices[0]
    told = whole.logprobs
    assert "".join(told.tokens) == whole.text
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(len(told.tokens))]
    assert all(value <= 0 for value in told.token_logprobs)
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_none_without_asking(client: Any) -> None:
    choice = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3).choices[0]
    assert choice.logprobs is None


def test_a_prompt_has_none(server: Process) -> None:
    response = server.post("/v1/completions", prompt="x", echo=True, logprobs=1)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "echo"


def test_responses(client: Any) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "input": ASK,
        "temperature": 0,
        "max_output_tokens": 12,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 3,
    }
    whole = client.responses.create(**options)
    (part,) = whole.output[0].content
    told = [one.model_dump() for one in part.logprobs]
    assert whole.top_logprobs == 3
    # The same tokens with the same values as from the endpoint above.
    chat = client.chat.completions.create(
        model="tiny", messages=ASK, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3
    )
    assert told == [one.model_dump() for one in chat.choices[0].logprobs.content]
    assert "".join(one["token"] for one in told) == part.text == whole.output_text
    events = list(client.responses.create(**options, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    pieces = [one for event in deltas for one in event.logprobs]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    for found in (pieces, done.logprobs):
        assert [(one.token, one.logprob) for one in found] == [
            (one["token"], one["logprob"]) for one in told
        ]
        assert [[(other.token, other.logprob) for other in one.top_logprobs] for one in found] == [
            [(other["token"], other["logprob"]) for other in one["top_logprobs"]] for one in told
        ]
    assert events[-1].response.output[0].content[0].logprobs == part.logprobs
    # A part begins without any: what is said of it later is not in it yet.
    (added,) = [event for event in events if event.type == "response.content_part.added"]
    assert (added.part.text, added.part.logprobs) == ("", [])


def test_responses_without_most_likely_ones(client: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "input": ASK, "max_output_tokens": 3}
    include = ["message.output_text.logprobs"]
    part = client.responses.create(**options, include=include).output[0].content[0]
    assert len(part.logprobs) == 3
    assert all(one.logprob <= 0 and one.top_logprobs == [] for one in part.logprobs)
    assert client.responses.create(**options).output[0].content[0].logprobs == []
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**options, include=include, top_logprobs=21)
    assert raised.value.param == "top_logprobs"
