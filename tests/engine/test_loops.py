"""Answers that repeat themselves are stopped, and answers that only look so are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetok.engine.loops import repeats
from tests.fake import fake_model

# Ends of answers of SmolLM2-135M-Instruct at 8 bits that went on so until they were cut.
LOOPS = [
    "Abe a sea of dreams,\nAbe a sea of dreams,\n\nThe ocean's a place of endless wonder,\n",
    "Alex: Hey, buddy!\n\n",
    "* 2 teaspoons ground nutmeg\n",
    "Luna loved Max and loved Max.\n\n",
    "Max and Luna loved each other's company and loved each other's special bond.\n\n",
    "- Grilled Chicken, Sautéed with Smoked Paprika and Garlic:\n",
]
CELLS = "    <td>Data</td>\n"
FINE = {
    "matrix": "[\n" + ",\n".join("  [" + ", ".join("0" * 10) + "]" for _ in range(10)) + "\n]",
    "html": "<table>\n" + ("  <tr>\n" + CELLS * 3 + "  </tr>\n") * 10 + "</table>",
    "rule": "|" + " --- |" * 60,
    "line": "-" * 300 + "\n" + "=" * 300,
    "counting": "\n".join(str(i) for i in range(300)),
    "numbered": "\n".join(f"{i}. Fish" for i in range(200)),
    "song": "Na, na, na, nananana, nananana, hey Jude\n" * 3,
    "rhyme": "Row, row, row your boat,\nGently down the stream.\n\n" * 2,
    "table": "\n".join(f"| {i} | {i * i} | yes |" for i in range(60)),
    "inserts": "\n".join(f"INSERT INTO shop VALUES ({i}, 'name', 0.0);" for i in range(40)),
    "json": "\n".join(f'{{"name": "a", "age": {i}, "city": "b"}},' for i in range(50)),
}


def found(text: str) -> int | None:
    """The number of tokens, here characters, after which a text is stopped."""
    tokens = [ord(char) for char in text]
    decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
    return next((i for i in range(len(tokens) + 1) if repeats(tokens[:i], decode)), None)


@pytest.mark.parametrize("passage", LOOPS)
def test_loops_are_found(passage: str) -> None:
    place = found("Once there was something else. " + passage * 60)
    assert place is not None
    assert 160 <= place <= 31 + max(160, 3 * len(passage)) + 2 * len(passage) + 16


@pytest.mark.parametrize("name", FINE)
def test_other_repetition_is_not(name: str) -> None:
    words = FINE[name].split(" ")  # as coarse as tokens are
    ids = {word: i for i, word in enumerate(dict.fromkeys(words))}
    names = list(ids)
    tokens = [ids[word] for word in words]
    for i in range(len(tokens) + 1):
        assert not repeats(tokens[:i], lambda given: " ".join(names[j] for j in given))


def test_marks_may_repeat_longer() -> None:
    assert found("0, " * 150) is None
    place = found("0, " * 400)
    assert place is not None
    assert place > 512


def test_an_answer_is_stopped_only_where_it_is_asked_for(tmp_path: Path) -> None:
    text = "I am sorry. "
    model = fake_model(tmp_path / "m", rule=lambda ids: model.tokenize(text)[len(ids) % len(text)])
    result = model.generate("x", stop_loops=True)
    assert result.finish == "loop"
    assert 160 <= len(result.tokens) <= 192
    assert result.text == "".join(text[i % len(text)] for i in range(1, 1 + len(result.tokens)))
    assert model.generate("x", max_tokens=300).finish == "length"
