"""`/v1/completions`, and what is not a conversation."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import edgetok
from edgetok.models.bundled import bundled_model
from tests.serve.conftest import Process

openai = pytest.importorskip("openai")
SAID = [{"role": "user", "content": "x"}]


def test_texts_and_tokens(server: Process) -> None:
    with edgetok.load(bundled_model()) as model:
        result = model.generate("Once upon a time", temperature=0.0, max_tokens=16)
        tokens = model.tokenize("Once upon a time")
    for prompt in ("Once upon a time", tokens, ["Once upon a time"], [tokens]):
        found = server.post("/v1/completions", prompt=prompt, temperature=0).json()
        assert found["object"] == "text_completion"
        assert found["choices"][0]["text"] == result.text
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] == 16


def test_several_prompts_and_answers(server: Process) -> None:
    prompts = ["Once upon a time", "The dog said"]
    found = server.post(
        "/v1/completions", prompt=prompts, n=2, temperature=0, max_tokens=5, echo=True
    ).json()
    assert [one["index"] for one in found["choices"]] == [0, 1, 2, 3]
    texts = [one["text"] for one in found["choices"]]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert texts[0].startswith(prompts[0])
    assert texts[2].startswith(prompts[1])
    assert found["usage"]["completion_tokens"] == 20


def test_the_openai_package(server: Process) -> None:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        whole = client.completions.create(model="tiny", prompt="Once", temperature=0, max_tokens=12)
        stream = client.completions.create(
            model="tiny", prompt="Once", temperature=0, max_tokens=12, stream=True
        )
        assert "".join(one.choices[0].text for one in stream) == whole.choices[0].text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": [10**9]}, "token 1000000000 in the prompt"),
        ({"prompt": [-1]}, "token -1 in the prompt"),
        ({"prompt": []}, "prompt: empty"),
        ({"prompt": ["x"] * 17}, "17 answers"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "logprobs": 10**6}, "logprobs"),
        ({"prompt": "x", "best_of": 5}, "best_of"),
    ],
)
def test_refused(server: Process, fields: dict[str, Any], message: str) -> None:
    response = server.post("/v1/completions", **fields)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_models(server: Process) -> None:
    found = httpx.get(server.url + "/v1/models").json()
    assert found["object"] == "list"
    (one,) = found["data"]
    assert one.keys() >= {"id", "object", "created", "owned_by"}
    assert (one["id"], one["object"]) == ("tiny", "model")
    assert one["created"] > 1_700_000_000
    for path in ("/models", "//models", "/v1//models", "//v1/models"):
        assert httpx.get(server.url + path).json() == found
    assert httpx.get(server.url + "/v1/models/tiny").json() == one
    with openai.OpenAI(base_url=server.url + "/v1/", api_key="x", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        ("chat/completions", {"messages": SAID, "max_tokens": 1}, "chat.completion"),
        ("completions", {"prompt": "x", "max_tokens": 1}, "text_completion"),
        ("responses", {"input": "x", "max_output_tokens": 1}, "response"),
        ("responses/input_tokens", {"input": "x"}, "response.input_tokens"),
        ("embeddings", {"input": "x"}, "list"),
    ],
)
def test_a_body_says_what_it_is(
    server: Process, path: str, fields: dict[str, Any], kind: str
) -> None:
    """Those of models, health, streams and ranks: see their tests. Anthropic's have a `type`."""
    found = server.post(f"/v1/{path}", **fields).json()
    assert found["object"] == kind
    if kind == "list":
        assert {one["object"] for one in found["data"]} == {"embedding"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_unknown_models_are_refused(server: Process, path: str) -> None:
    fields = {"messages": SAID} if "chat" in path else {"prompt": "x"}
    response = httpx.post(server.url + path, json={"model": "gpt-4o"} | fields)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "tiny" in error["message"]
    response = httpx.post(server.url + path, json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"


def test_what_no_model_can(server: Process) -> None:
    response = server.post("/v1/rerank", query="x", documents=["y"])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_model"


def test_paths_and_methods(server: Process) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
    ):
        response = httpx.request(method, server.url + path)
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_health_and_metrics(server: Process) -> None:
    assert httpx.get(server.url + "/health").json() == {"object": "health", "status": "ok"}
    server.chat("Hi", max_tokens=3)
    response = httpx.get(server.url + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = set()
    for line in response.text.splitlines():
        if line.startswith("# TYPE"):
            names.add(line.split()[2])
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            float(value)
            assert any(name.startswith(known) for known in names)
    assert {"edgetok_requests_total", "edgetok_generated_tokens_total"} <= names
    parser = pytest.importorskip("prometheus_client.parser")
    families = {f.name for f in parser.text_string_to_metric_families(response.text)}
    assert "edgetok_first_token_seconds" in families


def test_streams_are_json_lines_of_the_protocol(server: Process) -> None:
    response = server.post("/v1/completions", prompt="Once", stream=True, max_tokens=3)
    data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert {json.loads(one)["object"] for one in data[:-1]} == {"text_completion"}
