"""Scores of texts for a query against transformers' logits, in Python and over HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from edgetok.cli.main import run
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import ContextError, OptionError, UnsupportedError
from edgetok.model import Model
from tests.fake import fake_model
from tests.tiny import load_reference, tiny_checkpoint

TOKENS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "yes", "no"]
QUERY = "where is the small cat"
DOCUMENTS = ["the small cat sat on the mat", "the sea", "", "dogs " * 40, "the small cat sat"]
# The card of Qwen3-Reranker says it so.
PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
WEB = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the tokens that such models have."""
    folder = tmp_path_factory.mktemp("rank") / "Tiny-Reranker"
    tiny_checkpoint("qwen3", folder, max_position_embeddings=1024)
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    first = len(settings["model"]["vocab"])
    added = [
        {
            "id": first + i,
            "content": text,
            "special": text.startswith("<"),
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for i, text in enumerate(TOKENS)
    ]
    settings["added_tokens"] += added
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def artefact(checkpoint: Path) -> Path:
    out = checkpoint.parent / "artefact"
    convert(str(checkpoint), out, ConvertOptions(bits=16, method="rtn", reference_tokens=0))
    return out


@pytest.fixture(scope="session")
def model(artefact: Path) -> Iterator[Model]:
    with Model.load(artefact, threads=1, compute="float32", kv_bits=32) as model:
        yield model


def theirs(checkpoint: Path, instruction: str = WEB) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    reference = load_reference(checkpoint)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    found = []
    for document in DOCUMENTS:
        text = PROMPT.format(instruction=instruction, query=QUERY, document=document)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = reference(ids).logits[0, -1]
        found.append(float(torch.softmax(logits[[no, yes]].double(), -1)[1]))
    return found


def test_equals_transformers(checkpoint: Path, model: Model) -> None:
    expected = theirs(checkpoint)
    assert np.ptp(expected) > 0.01  # or nothing would be seen
    np.testing.assert_allclose(model.rerank(QUERY, DOCUMENTS), expected, atol=1e-4)
    # Each alone: nothing of another text is left in the cache.
    alone = [model.rerank(QUERY, [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    other = theirs(checkpoint, "Find the cat")
    np.testing.assert_allclose(
        model.rerank(QUERY, DOCUMENTS, instruction="Find the cat"), other, atol=1e-4
    )
    assert np.abs(np.subtract(other, expected)).max() > 1e-3


def test_bad_input(model: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="documents is empty"):
        model.rerank(QUERY, [])
    with pytest.raises(OptionError, match="expected a list"):
        model.rerank(QUERY, "text")
    with pytest.raises(OptionError, match="a document is an int"):
        model.rerank(QUERY, [3])  # type: ignore[list-item]
    with pytest.raises(
        ContextError, match=r"document 2 and the query have .* expected at most 1,024; shorten"
    ):
        model.rerank(QUERY, ["dog", "dog " * 2000])
    with pytest.raises(UnsupportedError, match=r"ranks no texts: 'yes' is 3 of its tokens"):
        fake_model(tmp_path / "fake").rerank(QUERY, ["x"])


def test_on_the_command_line(
    model: Model,
    artefact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files are texts, and so are lines of stdin; best first, with the scores of `Model.rerank`."""
    files = []
    for i, document in enumerate(DOCUMENTS):
        files.append(tmp_path / f"{i}.txt")
        files[-1].write_text(document)
    expected = model.rerank(QUERY, DOCUMENTS)
    order = sorted((i for i in range(5) if DOCUMENTS[i]), key=lambda i: -expected[i])
    exact = [*("--threads", "1"), *("--compute", "float32"), *("--kv-bits", "32")]
    begin = ["rerank", str(artefact), "--query", QUERY, *exact]
    assert run([*begin, "--json", *map(str, files)]) == 0
    printed, said = capsys.readouterr()
    found = json.loads(printed)
    assert found["query"] == QUERY
    assert [one["index"] for one in found["results"]] == order
    assert [one["name"] for one in found["results"]] == [str(files[i]) for i in order]
    assert [one["score"] for one in found["results"]] == pytest.approx([expected[i] for i in order])
    assert said == f"{files[2]}: empty, left out\n"
    assert run([*begin, "--top", "2", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{expected[i]:.4f}  {files[i]}" for i in order[:2]]
    monkeypatch.setattr("sys.stdin", io.StringIO("the sea\n\nthe small cat sat\n"))
    assert run([*begin, "--instruction", "Find the cat", "--json", "-"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    both = model.rerank(QUERY, ["the sea", "the small cat sat"], instruction="Find the cat")
    assert {one["name"]: one["score"] for one in results} == pytest.approx(
        {"the sea": both[0], "the small cat sat": both[1]}
    )


def test_what_the_command_refuses(
    artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    monkeypatch.setattr("edgetok.cli.commands.rerank._MOST_BYTES", 3)
    (tmp_path / "long.txt").write_text("four")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for words, message in (
        ([str(artefact), "--query", "x", "-"], "no text given"),
        ([str(artefact), "--query", "x", str(tmp_path / "none")], "No such file"),
        ([str(artefact), "--query", "x", str(tmp_path / "long.txt")], "larger than 3 bytes"),
        ([str(artefact), "--query", "x", str(tmp_path / "bytes")], "not UTF-8 text"),
        ([str(artefact), "--query", " ", "-"], "--query is empty"),
        ([str(artefact), "-"], "--query"),
        ([str(artefact), "--query", "x"], "FILE"),
    ):
        assert run(["rerank", *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
    assert run(["rerank", str(artefact), "--query", "x", str(tmp_path / "empty"), "-"]) == 2
    assert "every file, or line of stdin, is empty" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(artefact: Path) -> Any:
    pytest.importorskip("uvicorn")
    from edgetok.models.bundled import bundled_model
    from tests.serve.conftest import Process

    made = Process(
        str(artefact),
        f"tiny={bundled_model()}",
        f"my-reranker={bundled_model()}",
        "--memory",
        "1GiB",
        name="artefact",
    )
    yield made
    made.stop()
    assert "Traceback" not in "".join(made.lines), "".join(made.lines)


def test_over_http(checkpoint: Path, server: Any) -> None:
    """The source's name says that it ranks, not the folder's."""
    expected = theirs(checkpoint)
    found = server.post("/v1/rerank", query=QUERY, documents=DOCUMENTS)
    assert found.status_code == 200, found.text
    body = found.json()
    assert (body["object"], body["model"]) == ("list", "artefact")
    scores = [one["relevance_score"] for one in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(one["index"] for one in body["results"]) == list(range(len(DOCUMENTS)))
    for one in body["results"]:  # 8 bits of cache and of activations
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=0.02)
        assert one.keys() == {"index", "relevance_score"}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    count = sum(
        len(
            tokenizer(
                PROMPT.format(instruction=WEB, query=QUERY, document=document),
                add_special_tokens=False,
            ).input_ids
        )
        for document in DOCUMENTS
    )
    assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}
    given = [{"text": text} for text in DOCUMENTS]
    best = server.post(
        "/rerank", query=QUERY, documents=given, top_n=2, return_documents=True
    ).json()["results"]
    assert [one["index"] for one in best] == [one["index"] for one in body["results"][:2]]
    assert [one["document"] for one in best] == [given[one["index"]] for one in best]
    assert server.gauge("memory_caches_bytes") == 0


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": "tiny"}, "model", "tiny was not trained to rank"),
        ({"model": "my-reranker"}, "model", "ranks no texts"),
        ({"model": "x"}, "model", "does not exist"),
        ({"documents": []}, "documents", "0 texts"),
        ({"documents": [3]}, "documents.0", ""),
        ({"documents": [{"image": "x"}]}, "documents.0", "has no text"),
        ({"top_n": 0}, "top_n", "expected at least 1"),
        ({"query": None}, "query", "string"),
        ({"documents": ["dog " * 2000]}, "documents", "expected at most 1,024"),
    ],
)
def test_refused(server: Any, fields: dict[str, Any], param: str, message: str) -> None:
    response = server.post("/v1/rerank", **({"query": QUERY, "documents": DOCUMENTS} | fields))
    assert response.status_code == (404 if fields.get("model") == "x" else 400), response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert server.gauge("memory_caches_bytes") == 0
