"""Vocabularies of several kinds of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetok.grammar.vocabulary import Vocabulary
from edgetok.text.tokenizer import Tokenizer
from tests.fake import END, VOCAB_SIZE, write_tokenizer

KINDS = ("bytes", "smollm2", "tinyllama-chat", "phi-3-mini")


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """A byte-level tokenizer without merges, a real one, and two of sentencepiece's kind."""
    if request.param == "bytes":
        folder = tmp_path_factory.mktemp("bytes")
        write_tokenizer(folder)
        return Tokenizer.from_folder(folder, VOCAB_SIZE + 5)  # five logits without a token
    data: Path = request.getfixturevalue("data")
    folder = data / "tokenizers" / request.param
    size = 1 + max(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].values())
    return Tokenizer.from_folder(folder, size + 100)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    assert tokenizer.eos_token is not None
    return Vocabulary(tokenizer, {tokenizer.eos_token})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """The byte-level one alone."""
    folder = tmp_path_factory.mktemp("small")
    write_tokenizer(folder)
    return Vocabulary(Tokenizer.from_folder(folder, VOCAB_SIZE), {END})
