"""Clients of other makers, unchanged: each is skipped where it is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Process

QUESTION = "Who are you?"
SCHEMA = {
    "title": "Animal",
    "description": "An animal.",
    "type": "object",
    "properties": {"kind": {"enum": ["dog", "cat"]}, "legs": {"type": "integer", "maximum": 8}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}


@pytest.fixture
def expected(server: Process) -> str:
    found = server.chat(QUESTION, temperature=0, max_tokens=20).json()
    return str(found["choices"][0]["message"]["content"])


@pytest.mark.filterwarnings("ignore")
def test_langchain(server: Process, expected: str) -> None:
    made = pytest.importorskip("langchain_openai")
    chat = made.ChatOpenAI(
        base_url=server.url + "/v1", api_key="x", model="tiny", temperature=0, max_tokens=20
    )
    whole = chat.invoke(QUESTION)
    assert whole.content == expected
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(str(one.content) for one in chat.stream(QUESTION)) == expected
    pytest.importorskip("llguidance")
    held = made.ChatOpenAI(
        base_url=server.url + "/v1", api_key="x", model="tiny", max_tokens=300
    ).with_structured_output(SCHEMA, method="json_schema")
    assert held.invoke("Tell me of a dog.")["kind"] in ("dog", "cat")


@pytest.mark.filterwarnings("ignore")
def test_llamaindex(server: Process, expected: str) -> None:
    made = pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage

    model = made.OpenAILike(
        api_base=server.url + "/v1",
        api_key="x",
        model="tiny",
        is_chat_model=True,
        temperature=0,
        max_tokens=20,
    )
    said = [ChatMessage(role="user", content=QUESTION)]
    assert model.chat(said).message.content == expected
    assert "".join(one.delta for one in model.stream_chat(said)) == expected


def test_llm(server: Process, expected: str, tmp_path: Path) -> None:
    """simonw's command line, with a model that its configuration names."""
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: tiny\n  model_name: tiny\n  api_base: {server.url}/v1\n"
    )
    for extra in ([], ["--no-stream"]):
        done = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "llm", "prompt", "-m", "tiny", QUESTION),
                *("-o", "temperature", "0", "-o", "max_tokens", "20", "--key", "x", *extra),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected.strip()


def test_the_openai_npm_package(server: Process, expected: str, tmp_path: Path) -> None:
    """Node's client; EDGETOK_NODE_MODULES names a folder in which `npm install openai` was run."""
    folder = os.environ.get("EDGETOK_NODE_MODULES", "")
    if shutil.which("node") is None or not (Path(folder) / "node_modules/openai").is_dir():
        pytest.skip("needs node, and EDGETOK_NODE_MODULES with the openai package")
    script = Path(folder) / "edgetok-test.mjs"
    script.write_text(
        """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "x", maxRetries: 0 });
const body = { model: "tiny", messages: [{ role: "user", content: process.argv[3] }],
               temperature: 0, max_tokens: 20 };
const whole = await client.chat.completions.create(body);
let text = "", usage = null;
const stream = await client.chat.completions.create(
  { ...body, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const response = await client.responses.create({ model: "tiny", input: process.argv[3],
  temperature: 0, max_output_tokens: 20 });
let code = null;
try { await client.chat.completions.create({ ...body, model: "other" }); }
catch (error) { code = error.code; }
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({ whole: whole.choices[0].message.content, text,
  tokens: usage.completion_tokens, newer: response.output_text, code, models }));
"""
    )
    done = subprocess.run(
        ["node", str(script), server.url, QUESTION],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    script.unlink()
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout)
    assert found["whole"] == found["text"] == found["newer"] == expected
    assert found["code"] == "model_not_found"
    assert found["models"] == ["tiny"]
    assert found["tokens"] > 0
