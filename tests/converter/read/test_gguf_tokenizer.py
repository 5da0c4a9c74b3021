"""Single tokens, of which a GGUF file says something or nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from edgetok.converter.read.gguf_tokenizer import tokenizer_files
from edgetok.errors import CheckpointError
from edgetok.formats.gguf import GgufFile

BYTES = [f"<0x{i:02X}>" for i in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "<|im_end|>"]
TYPES = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 3]
NUMBER = {piece: i for i, piece in enumerate(PIECES)}


def made(tokens: list[str], **fields: Any) -> tokenizers.Tokenizer:
    scores = np.zeros(len(tokens), np.float32)
    known = {
        "model": "llama", "tokens": tokens, "scores": scores, "bos_token_id": 1, "eos_token_id": 2,
        "unknown_token_id": 0, **fields,
    }  # fmt: skip
    values = {f"tokenizer.ggml.{key}": v for key, v in known.items() if v is not None}
    files = tokenizer_files(GgufFile(Path("m.gguf"), values, {}, ""), len(tokens))
    return tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))


def test_merges_of_its_own() -> None:
    """gemma4: spaces and bytes as sentencepiece has them, merges from the file."""
    tokens = [*PIECES, "ba"]
    merges = ["b a", "a b", "▁ a"]
    tokenizer = made(
        tokens, model="gemma4", scores=None, merges=merges, add_space_prefix=False,
        token_type=np.array([*TYPES, 1]),
    )  # fmt: skip
    expected = ["<s>", "ab", "▁a", "ba", "<0xC3>", "<0xBC>", "<|im_end|>"]
    found = tokenizer.encode("ab abaü<|im_end|>")
    assert found.tokens == expected
    assert tokenizer.decode(found.ids) == "ab abaü"


TEXTS = ["ab <s>a</s>", "a<|im_end|>b", "é\n", "<unk>"]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_an_end_that_is_called_normal(model: str) -> None:
    more: dict[str, Any] = {"model": model, "bos_token_id": 1, "eos_token_id": 2}
    if model == "gpt2":
        more |= {"pre": "gpt-2", "merges": ["a b"]}
    types = np.array([1 if t == 3 else t for t in TYPES], np.int32)
    right = made(PIECES, token_type=np.array(TYPES, np.int32), **more)
    found = made(PIECES, token_type=types, **more)
    for text in TEXTS:
        assert found.encode(text).ids == right.encode(text).ids, text
    assert NUMBER["<|im_end|>"] in found.encode(TEXTS[1]).ids


def test_no_types_at_all() -> None:
    right, found = made(PIECES, token_type=np.array(TYPES, np.int32)), made(PIECES)
    for text in TEXTS:
        assert found.encode(text).ids == right.encode(text).ids, text
        assert found.decode(found.encode(text).ids) == right.decode(right.encode(text).ids)
    assert [NUMBER["<0xC3>"], NUMBER["<0xA9>"], NUMBER["<0x0A>"]] == found.encode("é\n").ids[-3:]


@pytest.mark.parametrize(
    "long",
    [["a" * 80_000], ["a" * n for n in range(500, 1500)], ["é" * 999 + str(i) for i in range(999)]],
)
def test_tokens_without_end_are_refused(long: list[str]) -> None:
    begin = time.thread_time()
    with pytest.raises(CheckpointError, match="expected at most 1024"):
        made([*PIECES, *long])
    assert time.thread_time() - begin < 2


def test_many_scores_that_are_wrong_are_one_line() -> None:
    scores = np.full(len(PIECES), np.nan, np.float32)
    with pytest.raises(CheckpointError, match=r"scores is .*expected finite numbers") as caught:
        made(PIECES, scores=scores)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        # Marks are no letters, and digits stand in threes.
        ("lfm2", ["HelloWorld", "\u0120cafe", "\u00cc\u0123", "\u0120", "123", "45"]),
        ("qwen35", ["HelloWorld", "\u0120caf\u00c3\u00a9", "\u0120", *"12345"]),
        ("gpt-4o", ["Hello", "World", "\u0120cafe\u00cc\u0123", "\u0120", "123", "45"]),
    ],
)
def test_how_newer_models_split_words(pre: str, words: list[str]) -> None:
    """Bytes of words as byte-level BPE writes them; qwen35 joins a letter and its accent (NFC)."""
    more: dict[str, Any] = {"model": "gpt2", "pre": pre, "merges": ["a b"]}
    tokenizer = made(PIECES, token_type=np.array(TYPES, np.int32), **more)
    text = "HelloWorld cafe\u0301 12345"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == words
