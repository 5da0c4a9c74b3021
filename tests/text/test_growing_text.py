"""Tokens of texts that begin like earlier ones, against tokenising all of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgetok.text.growing_text import LEAST_CHARACTERS, GrowingTexts
from edgetok.text.tokenizer import Tokenizer
from tests.fake import VOCAB_SIZE, write_tokenizer

WORDS = ["dog", " ", "\n", "Ünï", "犬", "<|im_", "start|>", "|>", "<|im_start|>", "1", "  ", "'s"]


class Counting:
    """A tokenizer that notes how many characters it has read."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.read = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        self.read += len(text)
        return self._tokenizer.encode(text, special=special)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(tmp_path)
    return Counting(Tokenizer.from_folder(tmp_path, VOCAB_SIZE))


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def test_a_turn_costs_its_own_text(tokenizer: Any) -> None:
    texts = GrowingTexts(tokenizer)
    said = turn("The dog ran to the tree. " * 400)
    for number in range(4):
        said += turn(f"And then {number}?")
        before = tokenizer.read
        found = texts.encode(said)
        read = tokenizer.read - before
        assert found == tokenizer._tokenizer.encode(said, special=False)
        assert read == len(said) if number == 0 else read < 200


def test_any_change_gives_the_tokens_of_the_whole_text(tokenizer: Any) -> None:
    draw = random.Random(3)
    texts, said = GrowingTexts(tokenizer), turn("Hi " * LEAST_CHARACTERS)
    reused = 0
    for _ in range(60):
        place = draw.randrange(len(said))
        if draw.random() < 0.5:
            place = draw.randrange(max(0, len(said) - 40), len(said))
        said = said[:place] + "".join(draw.choices(WORDS, k=4)) + said[place + draw.randrange(4) :]
        before = tokenizer.read
        assert texts.encode(said) == tokenizer._tokenizer.encode(said, special=False)
        reused += tokenizer.read - before < len(said)
    assert reused > 15


def test_texts_without_a_special_token(tokenizer: Any) -> None:
    texts = GrowingTexts(tokenizer)
    for said in ("dog " * LEAST_CHARACTERS, "dog " * LEAST_CHARACTERS + "cat", "Hi", ""):
        assert texts.encode(said) == tokenizer._tokenizer.encode(said, special=False)
