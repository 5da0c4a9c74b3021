"""Chats of a model with recurrent layers: nothing is read again that a state or snapshot covers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.model import Model
from tests.tiny import UNLIKE_LAYERS, tiny_checkpoint

QUESTIONS = ["the small dog and the cat", "they ran to the sea. " * 20, "the mat and then", "the"]
SPARE_TOKENS = 64  # a chat renders the last words of an answer anew; snapshots stand 16 apart
KEPT_OPTIONS: dict[str, Any] = {"kv_policy": "none", "context": 2048, "threads": 1}


@pytest.fixture(scope="module", params=["lfm2", "qwen3_next", "granitemoehybrid", *UNLIKE_LAYERS])
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hybrid")
    folder = tiny_checkpoint(request.param, root / "model", max_position_embeddings=2048)
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    report = convert(str(folder), root / "artefact", options)
    assert any("genai_config.json left out" in note for note in report.notes)
    return root / "artefact"


@pytest.fixture(scope="module")
def model(artefact: Path) -> Iterator[Model]:
    with Model.load(artefact, **KEPT_OPTIONS) as model:
        yield model


def talk(model: Model, questions: list[str] = QUESTIONS) -> Any:
    chat = model.new_chat(temperature=0.0, max_tokens=50)
    for question in questions:
        chat.send(question).run()
    return chat


def test_a_turn_reads_what_is_new(model: Model) -> None:
    chat = model.new_chat(temperature=0.0, max_tokens=50)
    used = 0
    for question in QUESTIONS:
        result = chat.send(question).run()
        assert result.stats.cached_tokens >= used - SPARE_TOKENS
        used = chat.used_tokens
    assert used > 150


def test_retry_goes_back_to_the_end_of_the_prompt(model: Model) -> None:
    chat = talk(model)
    before = chat.last
    again = chat.retry().run()
    assert again.tokens == before.tokens
    assert again.stats.cached_tokens >= again.stats.prompt_tokens - 17


def test_undo_goes_back_to_the_turn_before(model: Model) -> None:
    chat = talk(model)
    for left in (3, 2):
        chat.undo()
        result = chat.send("and the dog").run()
        fresh = talk(model, [*QUESTIONS[:left], "and the dog"])
        assert result.tokens == fresh.last.tokens
        assert result.stats.cached_tokens > result.stats.prompt_tokens - 2 * SPARE_TOKENS
        chat.undo()


def test_a_session_goes_on_in_another_process(artefact: Path, tmp_path: Path) -> None:
    """Caches that may evict are saved; here nothing has to go."""
    with (
        Model.load(artefact, context=1024, threads=1) as mine,
        Model.load(artefact, context=1024, threads=1) as other,
    ):
        chat = talk(mine)
        chat.save(tmp_path / "talk")
        theirs = other.new_chat(temperature=0.0, max_tokens=50)
        theirs.load(tmp_path / "talk")
        assert theirs.messages == chat.messages
        retried = theirs.retry().run()
        assert retried.tokens == chat.last.tokens
        assert retried.stats.cached_tokens >= retried.stats.prompt_tokens - 17
        more, same = theirs.send("a dog").run(), chat.send("a dog").run()
        assert more.tokens == same.tokens


def test_prefixes_are_read_once(artefact: Path) -> None:
    with Model.load(artefact, **KEPT_OPTIONS, prefix_cache="4MB") as model:
        first = talk(model, QUESTIONS[:2])
        other = model.new_chat(temperature=0.0, max_tokens=50)
        results = [other.send(question).run() for question in QUESTIONS[:2]]
        assert results[-1].tokens == first.last.tokens
        stats = results[-1].stats
        assert stats.cached_tokens >= stats.prompt_tokens - 17


def test_drafts_change_nothing(artefact: Path) -> None:
    texts = []
    for speculate in (False, True):
        with Model.load(artefact, **KEPT_OPTIONS, speculate=speculate) as model:
            texts.append(talk(model).messages)
    assert texts[0] == texts[1]


def test_a_bounded_chat(artefact: Path) -> None:
    with Model.load(artefact, context=128, threads=1) as model:
        chat = talk(model)
        assert chat.memory is not None
        assert chat.memory.loss > 0
        used = chat.used_tokens
        assert chat.send("the").run().stats.cached_tokens >= used - SPARE_TOKENS


def test_states_take_what_no_limit_changes(artefact: Path) -> None:
    reports = []
    for context in (128, 256):
        with Model.load(artefact, context=context, threads=1) as model:
            reports.append(talk(model, QUESTIONS[:1]).memory)
            spec = model.backend.spec
    less, more = reports
    assert less.states_bytes == more.states_bytes < less.nbytes < more.nbytes
    assert (less.states_bytes > 0) == spec.keeps_states
