"""Conversations with a model that reasons: a schema holds the answer, not what comes before it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgetok.model import Model
from tests.fake import CHATML, END, fake_model

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
}
THOUGHT = 'So {"a": "no"}: hmm, [1'
ANSWER = '{"a": 7, "b": "y"}'
# Where the template leaves the answer: inside reasoning, before it, after an empty one.
OPENINGS = {"open": "<think>\n", "possible": "", "off": "<think>\n\n</think>\n\n"}
FORGET = "m['content'].split('</think>')[-1]"  # as families of such models write earlier answers


def reasons(opening: str) -> str:
    return CHATML.replace("m['content']", FORGET).replace(
        "assistant\n' }}", f"assistant\n{opening}' }}}}".replace("\n", "\\n")
    )


def speaks(said: str, opening: str) -> Any:
    """A rule that says the same in every turn."""

    def rule(tokens: list[int]) -> int:
        text = bytes(ALPHABET[token] for token in tokens if token < 256).decode()
        begun = "assistant\n" + opening
        done = text[text.rindex(begun) + len(begun) :]
        rest = said.removeprefix(done) if said.startswith(done) else ""
        return ALPHABET.index(ord(rest[0])) if rest else END

    return rule


def alphabet() -> list[int]:
    """The bytes in the order of the fake tokenizer's ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return plain + others


ALPHABET = alphabet()


@pytest.fixture(params=OPENINGS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    opening = request.param
    said = {
        "open": f"{THOUGHT}\n</think>\n\n{ANSWER}",
        "possible": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
        "off": ANSWER,
    }[opening]
    rule = speaks(said, OPENINGS[opening])
    with fake_model(tmp_path, rule=rule, template=reasons(OPENINGS[opening])) as made:
        yield made, "" if opening == "off" else THOUGHT


@pytest.mark.parametrize("held", [True, False])
def test_a_schema_holds_what_comes_after_the_reasoning(
    model: tuple[Model, str], held: bool
) -> None:
    loaded, thought = model
    options: dict[str, Any] = {"schema": SCHEMA} if held else {}
    chat = loaded.new_chat()
    for turn in range(3):
        answer = chat.send(f"question {turn}", **options)
        assert "".join(answer) == ANSWER
        assert answer.result.reasoning == thought
        assert answer.result.finish == "stop"
        jsonschema.validate(json.loads(answer.result.text), SCHEMA)
    assert [one["content"] for one in chat.messages[1::2]] == [ANSWER] * 3
    # The same as without a conversation, which the server does.
    alone = loaded.chat(chat.messages[:-1], **options)
    assert chat.last is not None
    assert (alone.text, alone.reasoning, alone.tokens) == (ANSWER, thought, chat.last.tokens)


def test_pieces_tell_them_apart(model: tuple[Model, str]) -> None:
    from edgetok.dialect.tool import ReasoningPiece, TextPiece

    loaded, thought = model
    pieces = list(loaded.new_chat().send("hi", schema=SCHEMA).pieces())
    kinds = [type(piece) for piece in pieces]
    count = kinds.count(ReasoningPiece)
    assert kinds == [ReasoningPiece] * count + [TextPiece] * (len(kinds) - count)
    texts = [piece.text for piece in pieces if isinstance(piece, (ReasoningPiece, TextPiece))]
    assert "".join(texts[:count]).rstrip() == thought
    assert "".join(texts[count:]) == ANSWER


def test_reasoning_that_is_cut_leaves_an_empty_answer(model: tuple[Model, str]) -> None:
    loaded, thought = model
    chat = loaded.new_chat()
    result = chat.send("hi", schema=SCHEMA, max_tokens=12).run()
    assert (result.finish, result.complete) == ("length", False)
    assert thought.startswith(result.reasoning.strip())
    assert chat.messages[-1]["content"] == result.text
    assert chat.retry().run().text == ANSWER


@pytest.mark.parametrize("styles", [True, False])
def test_reasoning_is_shown_only_where_it_can_be_told_apart(
    model: tuple[Model, str],
    styles: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgetok.cli.terminal import answer_view

    loaded, thought = model
    monkeypatch.setattr(answer_view, "styled", lambda: styles)
    view = answer_view.answer_view(True)
    answer_view.show_answer(loaded.new_chat().send("hi"), view)
    view.finish()
    shown = capsys.readouterr().out
    assert shown.endswith(ANSWER + "\n")
    before = re.sub(r"\x1b\[\d*m", "", shown.removesuffix(ANSWER + "\n"))
    assert before.strip() == (thought if styles else "")
