"""Answers that match a schema, on the bundled model: it would write stories otherwise."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.serve.conftest import Process

openai = pytest.importorskip("openai")
pytest.importorskip("llguidance")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["dog", "cat"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
ZIP = {"type": "string", "format": "zip"}  # unknown to llguidance, which compiles it in the end
NAMED = {"name": "animal", "strict": True, "schema": SCHEMA}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema(server: Process, seed: int, stream: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        fields: Any = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Tell me of a dog."}],
            "response_format": {"type": "json_schema", "json_schema": NAMED},
            "seed": seed,
            "temperature": 1.5,
            "max_tokens": 400,
        }
        if stream:
            chunks = client.chat.completions.create(stream=True, **fields)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            text = client.chat.completions.create(**fields).choices[0].message.content
    jsonschema.validate(json.loads(text), SCHEMA)


def test_a_pydantic_model(server: Process) -> None:
    import pydantic

    class Animal(pydantic.BaseModel):
        kind: str = pydantic.Field(max_length=8)
        legs: int = pydantic.Field(ge=0, le=8)

    with openai.OpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
        said: Any = [{"role": "user", "content": "Tell me of a dog."}]
        found = client.chat.completions.parse(
            model="tiny", messages=said, response_format=Animal, max_tokens=200
        )
        assert isinstance(found.choices[0].message.parsed, Animal)
        newer = client.responses.parse(
            model="tiny", input=said, text_format=Animal, max_output_tokens=200
        )
        assert isinstance(newer.output_parsed, Animal)


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"regex": "[0-9]{3}-[0-9]{4}"}, r"\d{3}-\d{4}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "a" ("b" | "c") "d"'}, "a[bc]d"),
        ({"json": {"type": "boolean"}}, "true|false"),
    ],
)
def test_other_forms(server: Process, given: Any, pattern: str) -> None:
    found = server.chat("Hi", structured_outputs=given, max_tokens=300, seed=1).json()
    assert re.fullmatch(pattern, found["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, None),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "string", "frobnicate": 1, "not": {}}},
                }
            },
            "response_format",
        ),
        ({"structured_outputs": {"regex": "(" * 60_000}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": ZIP}}}, None),
        ({"structured_outputs": {"wish": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": 5}}, "structured_outputs"),
    ],
)
def test_refused(server: Process, fields: Any, param: Any) -> None:
    response = server.chat("Hi", **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"]
    assert param is None or error["param"] == param
    assert error["code"] in ("invalid_schema", "unsupported_parameter")
