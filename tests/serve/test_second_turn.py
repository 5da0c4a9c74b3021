"""A long conversation's next turn reads what is new and nothing else: from memory and from disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

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


@pytest.fixture
def serving(artefact: Path, tmp_path: Path) -> Iterator[Any]:
    """Start the server; a second call ends the first process and starts another."""
    made: list[Process] = []
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for path in read_settings().cache_dir.glob("*.o"):  # compiled kernels
        shutil.copy2(path, folder)

    def start() -> Process:
        for one in made:
            one.stop()
        options = ("--context", "40960", "--memory", "1GiB", "--threads", "1")
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
def test_only_what_is_new_is_read(serving: Any, length: int) -> None:
    rng = np.random.default_rng(length)
    said = rng.integers(3, VOCAB_SIZE, length).tolist()
    new = [rng.integers(3, VOCAB_SIZE, count).tolist() for count in (40, 70, 30)]
    server = serving()
    assert computed(server, said) == length
    for more in new[:2]:
        said += more
        assert computed(server, said) == len(more)
    server = serving()  # another process, with what the first one left on disk
    said += new[2]
    # What was kept last on disk: after the turn before, or its prompt.
    assert computed(server, said) == len(new[2])
