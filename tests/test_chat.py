"""Generation and chat over a model that answers by a rule."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edgetok.errors import (
    ContextError,
    OptionError,
    OutputError,
    SessionError,
    TemplateError,
    UserError,
)
from edgetok.model import Model
from tests.fake import END, fake_model


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return fake_model(tmp_path / "m")


def prompt_rows(model: Model) -> int:
    """Rows of the last prompt that were computed: those of steps before the first of one row."""
    backend: Any = model.backend
    rows = [sum(step) for step in backend.computed]
    backend.computed.clear()
    return sum(rows[: rows.index(1)])


def test_turns_see_the_history_and_reuse_the_cache(model: Model) -> None:
    chat = model.new_chat()
    assert "".join(chat.send("one")) == "1:ONE!"
    first = prompt_rows(model)
    assert "".join(chat.send("two 🙂")) == "2:TWO 🙂!"
    second = prompt_rows(model)
    # the first turn and its answer are in the cache; only what came after them is computed
    assert second < first + 20
    assert chat.last is not None
    assert chat.last.stats.cached_tokens >= first + len("1:ONE!")
    assert chat.messages == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1:ONE!"},
        {"role": "user", "content": "two 🙂"},
        {"role": "assistant", "content": "2:TWO 🙂!"},
    ]
    assert chat.used_tokens <= chat.context_tokens


def test_emoji_comes_whole(model: Model) -> None:
    pieces = list(model.new_chat().send("a🙂b"))
    assert "🙂" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_undo_retry_clear_and_system(model: Model) -> None:
    chat = model.new_chat(system="sys")
    assert chat.send("one").run().text == "sys:1:ONE!"
    assert chat.send("two").run().text == "sys:2:TWO!"
    assert chat.retry().run().text == "sys:2:TWO!"
    assert len(chat.messages) == 5
    assert chat.undo() == "two"
    assert chat.send("three").run().text == "sys:2:THREE!"
    chat.system = "other"
    assert chat.retry().run().text == "other:2:THREE!"
    chat.clear()
    assert chat.messages == [{"role": "system", "content": "other"}]
    assert chat.used_tokens == 0
    assert chat.undo() is None
    with pytest.raises(OptionError, match="no message"):
        chat.retry()
    chat.system = None
    assert chat.send("x").run().text == "1:X!"


def test_cache_that_cannot_be_cut_is_computed_again(tmp_path: Path) -> None:
    model = fake_model(tmp_path, window=2)
    chat = model.new_chat()
    chat.send("one").run()
    chat.undo()
    assert chat.send("two").run().text == "1:TWO!"
    assert chat.last is not None
    assert chat.last.stats.cached_tokens == 0


def test_cancel_keeps_the_partial_answer(model: Model) -> None:
    chat = model.new_chat()
    answer = chat.send("hello")
    assert [next(answer), next(answer)] == ["1", ":"]
    answer.cancel()
    assert list(answer) == []
    assert answer.result.finish == "cancelled"
    assert chat.messages[-1] == {"role": "assistant", "content": "1:"}
    assert chat.send("again").run().text == "2:AGAIN!"


def test_closed_and_abandoned_answers(model: Model) -> None:
    chat = model.new_chat()
    answer = chat.send("hello")
    next(answer)
    answer.close()
    answer.close()
    assert list(answer) == []
    assert chat.messages[-1]["content"] == "1"
    abandoned = chat.send("more")
    next(abandoned)
    assert chat.send("next").run().text == "3:NEXT!"
    assert [m["content"] for m in chat.messages] == ["hello", "1", "more", "2", "next", "3:NEXT!"]


def test_cancelled_before_the_first_word(tmp_path: Path) -> None:
    model = fake_model(tmp_path, step_s=0.02)
    backend: Any = model.backend
    chat = model.new_chat()
    answer = chat.send("x" * 400)
    timer = threading.Timer(0.1, answer.cancel)
    timer.start()
    assert list(answer) == []
    timer.join()
    backend.step_s = 0.0
    assert 0 < chat.used_tokens < 400
    assert chat.messages == [{"role": "user", "content": "x" * 400}]
    assert chat.retry().run().text == "1:" + "X" * 400 + "!"
    chat.undo()
    # a message without an answer is replaced by the next one
    unanswered = chat.send("first")
    unanswered.cancel()
    unanswered.run()
    assert chat.send("second").run().text == "1:SECOND!"
    assert len(chat.messages) == 2


def test_error_in_the_backend_leaves_a_usable_chat(model: Model) -> None:
    chat = model.new_chat()
    chat.send("one").run()
    backend: Any = model.backend
    step = backend.step
    rows = []

    def failing(parts: Any) -> Any:
        rows.append(parts[0].tokens.size)
        if rows[-2:] == [1, 1]:  # the second token
            raise KeyboardInterrupt
        return step(parts)

    backend.step = failing
    with pytest.raises(KeyboardInterrupt):
        chat.send("two").run()
    assert chat.used_tokens == 0
    assert chat.messages[-1] == {"role": "assistant", "content": "2:"}
    backend.step = step
    assert chat.retry().run().text == "2:TWO!"


def test_context_full(tmp_path: Path) -> None:
    model = fake_model(tmp_path, context=80)
    chat = model.new_chat()
    with pytest.raises(ContextError, match=r"the prompt has 1\d\d tokens, the context holds 80"):
        chat.send("x" * 100)
    assert chat.messages == []
    result = chat.send("y" * 45).run()
    assert result.finish == "context"
    assert len(result.text) == 80 - result.stats.prompt_tokens + 1
    before = chat.messages
    with pytest.raises(ContextError):
        chat.send("more")
    assert chat.messages == before
    chat.clear()
    assert chat.send("y").run().text == "1:Y!"


def test_template_that_refuses_changes_nothing(tmp_path: Path) -> None:
    refusing = "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}"
    model = fake_model(tmp_path, template=refusing + "<|im_start|>user\nx<|im_end|>\n")
    chat = model.new_chat()
    chat.send("a").run()
    before = chat.messages
    with pytest.raises(TemplateError, match="too many"):
        chat.send("b")
    assert chat.messages == before


def test_no_template(tmp_path: Path) -> None:
    model = fake_model(tmp_path, template=None)
    with pytest.raises(TemplateError, match=r"no chat template.*edgetok generate"):
        model.new_chat()
    assert model.generate("x", max_tokens=3).text == "xxx"


def test_limits(tmp_path: Path) -> None:
    model = fake_model(tmp_path, rule=lambda tokens: (tokens[-1] + 1) % 256, context=50)
    result = model.generate([10], max_tokens=5)
    assert result.tokens == (11, 12, 13, 14, 15)
    assert result.finish == "length"
    assert result.stats.generated_tokens == 5
    full = model.generate([10])
    assert full.finish == "context"
    assert len(full.tokens) == 50
    assert model.generate(list(range(50))).stats.generated_tokens == 1
    with pytest.raises(ContextError, match="51 tokens, the context holds 50"):
        model.generate(list(range(51)), max_tokens=1)
    with pytest.raises(OptionError, match="empty"):
        model.generate("")
    with pytest.raises(OptionError, match="token 258"):
        model.generate([258])
    with pytest.raises(OptionError, match="token -1"):
        model.generate([-1])
    with pytest.raises(OptionError, match="not valid Unicode"):
        model.generate("a\ud800")
    with pytest.raises(OptionError, match="heat"):
        model.generate("a", heat=1)  # type: ignore[call-arg]


def test_end_token_and_stop_text(tmp_path: Path) -> None:
    text = "one STOP two"
    model = fake_model(tmp_path)
    ids = model.tokenize(text)

    def rule(tokens: list[int]) -> int:
        place = len(tokens) - 1
        return ids[place] if place < len(ids) else END

    backend: Any = model.backend
    backend.rule = rule
    assert model.generate([0]).text == text
    assert model.generate([0]).tokens[-1] == END
    for stop in ("STOP", "TOP", "e S"):
        stream = model.stream([0], stop=(stop,))
        assert "".join(stream) == text[: text.index(stop)]
        assert stream.result.finish == "stop"
    assert model.generate([0], stop=("two!",)).text == text


def test_many_threads(tmp_path: Path) -> None:
    model = fake_model(tmp_path)
    answers: dict[int, str] = {}

    def talk(i: int) -> None:
        answers[i] = model.new_chat().send(f"thread {i}").run().text

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"1:THREAD {i}!" for i in range(8)}


def test_save_and_load(model: Model, tmp_path: Path) -> None:
    chat = model.new_chat(system="Ünïcode", temperature=0.0, stop=("zz",))
    chat.send("one").run()
    path = tmp_path / "talk.json"
    chat.save(path)
    assert path.stat().st_mode & 0o077 == 0
    other = model.new_chat()
    other.load(path)
    assert other.messages == chat.messages
    assert other.sampling == chat.sampling
    assert other.send("two").run().text == chat.send("two").run().text == "Ünïcode:2:TWO!"
    assert list(tmp_path.glob(".talk*")) == []


def test_damaged_session_files(model: Model, tmp_path: Path) -> None:
    chat = model.new_chat()
    chat.send("one").run()
    path = tmp_path / "talk.json"
    chat.save(path)
    good = path.read_bytes()
    before = chat.messages
    bad = tmp_path / "bad.json"
    for place in range(len(good)):
        flipped = bytearray(good)
        flipped[place] ^= 1 << place % 8
        bad.write_bytes(flipped)
        try:
            chat.load(bad)
        except SessionError:
            continue
        # white space outside strings carries nothing
        assert json.loads(flipped) == json.loads(good)
    for cut in (0, 1, len(good) // 2, len(good) - 1):
        bad.write_bytes(good[:cut])
        with pytest.raises(SessionError):
            chat.load(bad)
    assert chat.messages == before
    assert chat.send("two").run().text == "2:TWO!"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"extra": 1},
        {"model": "cd" * 32},
        {"system": 5},
        {"turns": {}},
        {"turns": [{"role": "assistant", "content": "x"}]},
        {"turns": [{"role": "user", "content": "x", "more": 1}]},
        {"turns": [{"role": "user", "content": 1}]},
        {"sampling": []},
        {"sampling": {"temperature": -1}},
        {"sampling": {"unknown": 1}},
        {"sampling": {"stop": 5}},
    ],
    ids=str,
)
def test_foreign_session_files(model: Model, tmp_path: Path, change: dict[str, Any]) -> None:
    from edgetok.session import _digest

    chat = model.new_chat()
    path = tmp_path / "talk.json"
    chat.save(path)
    body = json.loads(path.read_text())
    del body["sha256"]
    body.update(change)
    path.write_text(json.dumps({**body, "sha256": _digest(body)}))
    with pytest.raises(SessionError, match=r"talk\.json"):
        chat.load(path)


def test_save_where_nothing_can_be_written(model: Model, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        model.new_chat().save(tmp_path / "missing" / "talk.json")
    with pytest.raises(SessionError, match="cannot be read"):
        model.new_chat().load(tmp_path / "missing.json")


def test_options_of_the_context(tmp_path: Path) -> None:
    assert fake_model(tmp_path, context_tokens=9000).context_tokens == 4096
    assert fake_model(tmp_path, context_tokens=500).context_tokens == 500
    for bad in (0, 1001, True):
        with pytest.raises(UserError, match="context is"):
            fake_model(tmp_path, context=bad)
