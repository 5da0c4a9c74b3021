"""Clients of other makers, unchanged: each is skipped where it is not installed.

`make test-clients` installs them in an environment of their own and runs this file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake import CHATML
from tests.serve.conftest import Process, Rule
from tests.serve.writing import written

QUESTION = "Who are you?"
SCHEMA: dict[str, Any] = {
    "title": "Animal",
    "description": "An animal.",
    "type": "object",
    "properties": {"kind": {"enum": ["dog", "cat"]}, "legs": {"type": "integer", "maximum": 8}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
TEXTS = ["The dog is small.", "The cat sleeps."]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom", "days": 2}}\n</tool_call>'
pytestmark = pytest.mark.filterwarnings("ignore")


def weather(city: str, days: int) -> str:
    """Tell the weather."""
    return f"sunny in {city} for {days} days"


@pytest.fixture
def expected(server: Process) -> str:
    found = server.chat(QUESTION, temperature=0, max_tokens=20).json()
    return str(found["choices"][0]["message"]["content"])


@pytest.fixture
def vectors(server: Process) -> np.ndarray:
    found = server.post("/v1/embeddings", input=TEXTS).json()["data"]
    return np.array([one["embedding"] for one in found])


@pytest.fixture
def calling(rule: Callable[..., Rule]) -> Rule:
    """A model that asks for the weather, and says "Nice." when it has been told."""
    pytest.importorskip("llguidance")
    answers = written(CALL), written("Nice.")
    told = b"sunny in Rom for 2 days"

    def after_all(tokens: list[int]) -> int:
        return answers[told in spelled(tokens)](tokens)

    return rule(rule=after_all, template=CHATML + "{# <tool_call> #}", context_tokens=8000)


def spelled(tokens: list[int]) -> bytes:
    """The text of a fake model's tokens, which are bytes in the order of their characters."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return "".join(alphabet[one] for one in tokens if one < 256).replace("Ġ", " ").encode()


# LangChain


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
    newer = made.ChatOpenAI(
        base_url=server.url + "/v1",
        api_key="x",
        model="tiny",
        temperature=0,
        max_tokens=20,
        use_responses_api=True,
    )
    assert newer.invoke(QUESTION).text == expected
    assert "".join(str(one.text) for one in newer.stream(QUESTION)) == expected
    pytest.importorskip("llguidance")
    held = made.ChatOpenAI(
        base_url=server.url + "/v1", api_key="x", model="tiny", max_tokens=300
    ).with_structured_output(SCHEMA, method="json_schema")
    assert held.invoke("Tell me of a dog.")["kind"] in ("dog", "cat")


@pytest.mark.parametrize("stream", [False, True])
def test_langchain_tools(calling: Rule, stream: bool) -> None:
    made = pytest.importorskip("langchain_openai")
    from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage

    model = made.ChatOpenAI(base_url=calling.url + "/v1", api_key="x", model="fake")
    model = model.bind_tools([weather])
    said: list[Any] = [HumanMessage("What is the weather?")]
    if stream:
        answer: Any = AIMessageChunk("")
        for chunk in model.stream(said):
            answer += chunk
    else:
        answer = model.invoke(said)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Rom", "days": 2})
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    assert model.invoke([*said, answer, result]).content == "Nice."


def test_langchain_embeddings(server: Process, vectors: np.ndarray) -> None:
    made = pytest.importorskip("langchain_openai")
    # Without this option it wants OpenAI's own tokens, which it would load from the network.
    given = {"check_embedding_ctx_length": False}
    maker = made.OpenAIEmbeddings(base_url=server.url + "/v1", api_key="x", model="tiny", **given)
    np.testing.assert_allclose(maker.embed_documents(TEXTS), vectors, atol=1e-7)


# LlamaIndex


def llamaindex(server: Any, **more: Any) -> Any:
    made = pytest.importorskip("llama_index.llms.openai_like")
    return made.OpenAILike(
        api_base=server.url + "/v1", api_key="x", model=server.name, is_chat_model=True, **more
    )


def test_llamaindex(server: Process, expected: str) -> None:
    model = llamaindex(server, temperature=0, max_tokens=20)
    from llama_index.core.llms import ChatMessage

    said = [ChatMessage(role="user", content=QUESTION)]
    assert model.chat(said).message.content == expected
    assert "".join(one.delta for one in model.stream_chat(said)) == expected


def test_llamaindex_schema(server: Process) -> None:
    pytest.importorskip("llguidance")
    import pydantic

    model = llamaindex(server, max_tokens=300, should_use_structured_outputs=True)
    from llama_index.core.prompts import PromptTemplate

    class Animal(pydantic.BaseModel):
        kind: str = pydantic.Field(max_length=8)
        legs: int = pydantic.Field(ge=0, le=8)

    found = model.structured_predict(Animal, PromptTemplate("Tell me of a dog."))
    assert isinstance(found, Animal)


@pytest.mark.parametrize("stream", [False, True])
def test_llamaindex_tools(calling: Rule, stream: bool) -> None:
    model = llamaindex(calling, is_function_calling_model=True)
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool

    tools = [FunctionTool.from_defaults(weather)]
    said = ChatMessage(role="user", content="What is the weather?")
    if stream:
        (*_, answer) = model.stream_chat_with_tools(tools, user_msg=said)
    else:
        answer = model.chat_with_tools(tools, user_msg=said)
    (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Rom", "days": 2})
    more = {"tool_call_id": call.tool_id}
    result = ChatMessage(role="tool", content=weather(**call.tool_kwargs), additional_kwargs=more)
    assert model.chat([said, answer.message, result]).message.content == "Nice."


def test_llamaindex_embeddings(server: Process, vectors: np.ndarray) -> None:
    made = pytest.importorskip("llama_index.embeddings.openai_like")
    maker = made.OpenAILikeEmbedding(api_base=server.url + "/v1", api_key="x", model_name="tiny")
    np.testing.assert_allclose(maker.get_text_embedding_batch(TEXTS), vectors, atol=1e-7)


# simonw's command line, with a model that its configuration names


def llm(folder: Path, server: Any, *words: str, **environment: str) -> str:
    pytest.importorskip("llm")
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: {server.name}\n  model_name: {server.name}\n  api_base: {server.url}/v1\n"
        "  supports_schema: true\n  supports_tools: true\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "llm", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"LLM_USER_PATH": str(folder)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("more", [(), ("--no-stream",)])
def test_llm(server: Process, expected: str, tmp_path: Path, more: tuple[str, ...]) -> None:
    options = ("-o", "temperature", "0", "-o", "max_tokens", "20", "--key", "x", *more)
    found = llm(tmp_path, server, "prompt", "-m", "tiny", QUESTION, *options)
    assert found == expected.strip()


def test_llm_schema(server: Process, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    words = ("prompt", "-m", "tiny", "Tell me of a dog.", "--schema", json.dumps(SCHEMA))
    found = json.loads(llm(tmp_path, server, *words, "--key", "x", "-o", "max_tokens", "300"))
    assert found["kind"] in ("dog", "cat")


@pytest.mark.parametrize("more", [(), ("--no-stream",)])
def test_llm_tools(calling: Rule, tmp_path: Path, more: tuple[str, ...]) -> None:
    """It calls the function itself and sends the result back."""
    function = (
        "def weather(city: str, days: int) -> str:\n"
        '    "Tell the weather."\n'
        '    return f"sunny in {city} for {days} days"\n'
    )
    words = ("prompt", "-m", "fake", "What is the weather?", "--functions", function, "--key", "x")
    assert llm(tmp_path, calling, *words, *more).endswith("Nice.")


def test_llm_embeddings(tmp_path: Path) -> None:
    """It knows OpenAI's models alone, so the server gives its model the name of one."""
    from edgetok.models.bundled import bundled_model

    name = "text-embedding-3-small"
    made = Process(f"{name}={bundled_model()}")
    try:
        found = llm(
            tmp_path,
            made,
            *("embed", "-m", name, "-c", TEXTS[0]),
            OPENAI_BASE_URL=made.url + "/v1",
            OPENAI_API_KEY="x",
        )
        wanted = made.post("/v1/embeddings", input=TEXTS[0]).json()["data"][0]["embedding"]
    finally:
        made.stop()
    np.testing.assert_allclose(json.loads(found), wanted, atol=1e-7)


# Node's client


def node(program: str, *words: str) -> Any:
    """Run a program; EDGETOK_NODE_MODULES names a folder in which `npm install openai` was run."""
    folder = os.environ.get("EDGETOK_NODE_MODULES", "")
    if shutil.which("node") is None or not (Path(folder) / "node_modules/openai").is_dir():
        pytest.skip("needs node, and EDGETOK_NODE_MODULES with the openai package")
    source = (Path(__file__).parent / "openai_npm.mjs").read_text()
    done = subprocess.run(
        ["node", "--input-type=module", "-", program, *words],
        input=source,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_openai_npm_package(server: Process, expected: str) -> None:
    found = node("text", server.url, QUESTION)
    assert found["whole"] == found["text"] == found["newer"] == found["newerText"] == expected
    assert found["code"] == "model_not_found"
    assert found["models"] == ["tiny"]
    assert found["tokens"] > 0


def test_the_openai_npm_package_schema(server: Process) -> None:
    pytest.importorskip("llguidance")
    found = node("schema", server.url, json.dumps(SCHEMA))
    for one in (found["whole"], found["newer"]):
        assert json.loads(one)["kind"] in ("dog", "cat")


def test_the_openai_npm_package_tools(calling: Rule) -> None:
    found = node("tools", calling.url)
    assert found["whole"] == found["streamed"] == [["weather", {"city": "Rom", "days": 2}]]
    assert found["reasons"] == ["tool_calls", "tool_calls"]
    assert found["after"] == found["ran"] == "Nice."


def test_the_openai_npm_package_embeddings(server: Process, vectors: np.ndarray) -> None:
    """It asks for base64 where nothing else is said."""
    found = node("embeddings", server.url, json.dumps(TEXTS))
    for one in ("asked", "float"):
        np.testing.assert_allclose(found[one], vectors, atol=1e-7)
    assert isinstance(found["base64"], str)
