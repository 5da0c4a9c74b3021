"""A long conversation's next turn reads what is new and nothing else: from memory and from disk."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgetok.cache.recurrent import SNAPSHOT_GAP_TOKENS
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.environment import read_settings
from tests.serve.conftest import Process
from tests.tiny import VOCAB_SIZE, tiny_checkpoint


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model that was trained for 40,960 tokens, by its own word."""
    folder = tmp_path_factory.mktemp("long")
    tiny_checkpoint("qwen3", folder / "checkpoint", max_position_embeddings=40_960)
    options = ConvertOptions(bits=16, method="rtn", reference_tokens=0)
    convert(str(folder / "checkpoint"), folder / "long", options)
    return folder / "long"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with recurrent layers, whose template opens an answer with an empty thought."""
    folder = tmp_path_factory.mktemp("hybrid")
    tiny_checkpoint("lfm2", folder / "checkpoint", max_position_embeddings=4096)
    path = folder / "checkpoint" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    opened = settings["chat_template"].replace("<|assistant|>", "<|assistant|><think>\n\n</think>")
    assert opened != settings["chat_template"]
    path.write_text(json.dumps(settings | {"chat_template": opened}))
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    convert(str(folder / "checkpoint"), folder / "long", options)
    return folder / "long"


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Any]:
    """Start the server; a second call ends the first process and starts another."""
    made: list[Process] = []
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for path in read_settings().cache_dir.glob("*.o"):  # compiled kernels
        shutil.copy2(path, folder)

    def start(artefact: Path, context: int = 40_960) -> Process:
        for one in made:
            one.stop()
        options = ("--context", str(context), "--memory", "1GiB", "--threads", "1")
        options += ("--prefix-cache", "256MB")
        made.append(Process(str(artefact), *options, EDGETOK_CACHE_DIR=str(folder)))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def computed(server: Process, tokens: list[int]) -> int:
    """Ask for an answer; returns how many tokens of the prompt were computed for it."""
    body = {"model": "long", "prompt": tokens, "max_tokens": 4, "temperature": 0}
    response = httpx.post(server.url + "/v1/completions", json=body, timeout=600)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)
    return len(tokens) - int(usage["prompt_tokens_details"]["cached_tokens"])


def test_a_conversation_that_the_prefix_cache_cannot_hold_is_told(artefact: Path) -> None:
    said = list(range(3, 103))
    server = Process(str(artefact), "--threads", "1", "--prefix-cache", "1kB")
    try:
        assert server.gauge("prefixes_too_large") == 0
        for _ in range(2):
            assert computed(server, said) == len(said)
        assert server.gauge("prefixes_too_large") >= 2
    finally:
        server.stop()
    told = [line for line in server.lines if "--prefix-cache" in line]
    assert len(told) == 1
    assert "a prompt of 10" in told[0]
    assert "the prefix cache holds 0.0 MB" in told[0]


@pytest.mark.parametrize("length", [1_500, pytest.param(32_768, marks=pytest.mark.slow)])
def test_only_what_is_new_is_read(serving: Any, artefact: Path, length: int) -> None:
    rng = np.random.default_rng(length)
    said = rng.integers(3, VOCAB_SIZE, length).tolist()
    new = [rng.integers(3, VOCAB_SIZE, count).tolist() for count in (40, 70, 30)]
    server = serving(artefact)
    assert computed(server, said) == length
    for more in new[:2]:
        said += more
        assert computed(server, said) == len(more)
    server = serving(artefact)  # another process, with what the first one left on disk
    said += new[2]
    # What was kept last on disk: after the turn before, or its prompt.
    assert computed(server, said) == len(new[2])


def test_a_hybrid_goes_back_to_where_the_answer_was_opened(serving: Any, hybrid: Path) -> None:
    """Also after a restart: what the history keeps of a prompt is not computed again."""
    server = serving(hybrid, 4096)
    said = [{"role": "user", "content": "they ran to the sea. " * 100}]
    counts = []
    for restart in (False, False, True):
        if restart:
            server = serving(hybrid, 4096)
        body = {"model": "long", "messages": said, "max_tokens": 8, "temperature": 0}
        response = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=600)
        assert response.status_code == 200, response.text
        found = response.json()
        usage = found["usage"]
        cached = int(usage["prompt_tokens_details"]["cached_tokens"])
        counts.append((int(usage["prompt_tokens"]), cached))
        said += [found["choices"][0]["message"], {"role": "user", "content": "the small dog"}]
    first = counts[0][0]
    assert first > 400
    opened = 2 + len("<think>\n\n</think>")  # tokens, at most
    for (before, _), (_, cached) in itertools.pairwise(counts):
        assert cached >= before - opened - SNAPSHOT_GAP_TOKENS
