"""Vectors of texts over HTTP, beside those of the model in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

import edgetok
from edgetok.models.bundled import bundled_model
from tests.serve.conftest import Process

TEXTS = ["The dog is small.", "The cat sleeps. " * 20]


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected() -> Any:
    with edgetok.load(bundled_model()) as model:
        tokens = [model.tokenize(text) for text in TEXTS]
        return model.embed(TEXTS), model.embed(TEXTS, pooling="mean"), tokens


def vectors(found: Any) -> np.ndarray:
    assert [one.index for one in found.data] == list(range(len(found.data)))
    return np.array([one.embedding for one in found.data], np.float32)


def test_texts_and_tokens(client: openai.OpenAI, expected: Any) -> None:
    """The client asks for base64 where nothing else is said."""
    last, _, tokens = expected
    for given in (TEXTS, tokens):
        for form in (openai.NOT_GIVEN, "float", "base64"):
            found = client.embeddings.create(model="tiny", input=given, encoding_format=form)
            assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
            if form == "base64":
                assert isinstance(found.data[0].embedding, str)
            else:
                np.testing.assert_array_equal(vectors(found), last)
    found = client.embeddings.create(model="tiny", input=TEXTS[0])
    np.testing.assert_array_equal(vectors(found), last[:1])
    found = client.embeddings.create(model="tiny", input=tokens[1])
    np.testing.assert_array_equal(vectors(found), last[1:])


def test_shorter_and_mean(client: openai.OpenAI, expected: Any) -> None:
    last, mean, _ = expected
    found = client.embeddings.create(model="tiny", input=TEXTS, dimensions=16)
    part = last[:, :16] / np.linalg.norm(last[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(found), part, atol=1e-6)
    found = client.embeddings.create(model="tiny", input=TEXTS, extra_body={"pooling": "mean"})
    np.testing.assert_array_equal(vectors(found), mean)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": []}, "input: empty"),
        ({"input": ["x"] * 2049}, "2,049 texts"),
        ({"input": [10**9]}, "token 1000000000"),
        ({"input": "cat " * 5000}, "expected at most 2,048"),
        ({"input": "x", "dimensions": 0}, "dimensions: 0"),
        ({"input": "x", "dimensions": 10**6}, "dimensions: 1,000,000"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": "x", "model": "other"}, "does not exist"),
    ],
)
def test_refused(server: Process, fields: dict[str, Any], message: str) -> None:
    response = server.post("/v1/embeddings", **fields)
    assert response.status_code in (400, 404)
    assert message in response.json()["error"]["message"]
    assert server.gauge("memory_caches_bytes") == 0
