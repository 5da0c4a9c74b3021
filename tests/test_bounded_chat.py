"""Conversations longer than their cache: memory, saved sessions, beginnings read once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgetok.cache.prefix_cache import PrefixCache
from edgetok.cli.main import run
from edgetok.errors import ContextError, OptionError, SessionError, UnsupportedError
from edgetok.model import Model
from tests.fake import fake_model

SYSTEM = "You are a kind friend."
OPTIONS = {"threads": 1, "context": 128, "kv_policy": "recall"}
LONG = " ".join(f"Room {i} has the code {4000 + 7 * i}." for i in range(14))


@pytest.fixture(scope="module")
def model(default_artefact):
    with Model.load(default_artefact, **OPTIONS) as loaded:
        loaded.sampling = loaded.sampling.with_changes({"temperature": 0.0, "max_tokens": 12})
        yield loaded


def talk(chat, turns):
    return [chat.send(f"My number is {100 + i}. Tell me a story.").run().text for i in range(turns)]


@pytest.fixture(scope="module")
def long_chat(model):
    chat = model.new_chat(system=SYSTEM)
    talk(chat, 12)
    return chat


def test_goes_on_beyond_the_cache_and_says_what_it_lost(model, long_chat):
    memory = long_chat.memory
    assert memory.seen > 2 * memory.slots == 256
    assert memory.seen == long_chat.used_tokens
    assert 0 < memory.retained <= memory.slots
    assert 0 < memory.loss < 1
    first = memory.kept[: memory.pinned]
    assert memory.pinned > 4
    assert (first == 1).all()
    assert (memory.kept[-memory.recent :] == 1).all()
    assert np.isclose(memory.kept.sum(), memory.retained)
    text = memory.text(model.tokenizer.stream().push)
    assert SYSTEM in text
    assert " … " in text
    assert memory.chosen > 0


def test_a_saved_session_goes_on_where_it_was(model, long_chat, tmp_path):
    long_chat.save(tmp_path / "talk")
    other = model.new_chat()
    other.load(tmp_path / "talk")
    assert other.messages == long_chat.messages
    assert other.memory.loss == long_chat.memory.loss
    question = "What is my number?"
    theirs, ours = other.send(question).run(), long_chat.send(question).run()
    assert theirs.tokens == ours.tokens
    # Nothing that was seen is computed again.
    assert theirs.stats.cached_tokens == ours.stats.cached_tokens > 200
    long_chat.undo()


def test_damaged_and_foreign_sessions_are_refused_and_the_chat_goes_on(model, long_chat, tmp_path):
    path = tmp_path / "talk"
    long_chat.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    before, memory = long_chat.messages, long_chat.memory.kept.copy()
    for at in [*rng.integers(0, len(whole), 12), 3, 9, len(whole) - 1]:
        bad = bytearray(whole)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        with pytest.raises(SessionError):
            long_chat.load(path)
    for cut in (0, 7, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SessionError):
            long_chat.load(path)
    path.write_bytes(whole)
    assert long_chat.messages == before
    np.testing.assert_array_equal(long_chat.memory.kept, memory)
    foreign = fake_model(tmp_path / "fake").new_chat()
    with pytest.raises(SessionError, match="belongs to another model"):
        foreign.load(path)
    long_chat.load(path)


def test_a_session_needs_a_cache_of_its_shape(default_artefact, model, long_chat, tmp_path):
    long_chat.save(tmp_path / "talk")
    path = tmp_path / "talk"
    with (
        Model.load(default_artefact, threads=1, context=128, kv_policy="none") as plain,
        pytest.raises(SessionError, match="with its --kv-policy recall"),
    ):
        plain.new_chat().load(path)
    with (
        Model.load(default_artefact, threads=1, context=192) as longer,
        pytest.raises(SessionError, match="128 tokens a head, this cache has 192 tokens a head"),
    ):
        longer.new_chat().load(path)
    with Model.load(default_artefact, threads=1, context=128) as same:  # chats evict unasked
        chat = same.new_chat()
        chat.load(path)
        assert chat.messages == long_chat.messages
        assert chat.memory.seen == long_chat.memory.seen


def test_a_system_message_must_leave_room(model):
    chat = model.new_chat(system=LONG)
    with pytest.raises(ContextError, match="half of the cache"):
        chat.send("Hello!")
    assert chat.messages[1:] == []
    chat.system = SYSTEM
    assert chat.send("Hello!").run().text


def test_a_session_of_another_cache_is_refused_by_the_option_that_differs(
    default_artefact, long_chat, tmp_path
):
    path = tmp_path / "talk"
    long_chat.save(path)
    for options, message in (
        ({"kv_policy": "window"}, "the policy recall, this cache has the policy window; .*policy"),
        ({"kv_bits": 4}, "8 bits per value, this cache has 4 bits per value; start with --kv-bits"),
        ({"kv_budget": "400kB"}, r" \d+ tokens a head, .*; start with --kv-budget and --context"),
    ):
        with Model.load(default_artefact, **{**OPTIONS, **options}) as other:
            chat = other.new_chat()
            with pytest.raises(SessionError, match=message) as caught:
                chat.load(path)
            assert str(caught.value).startswith(f"{path}: it was saved with ")
            assert "block_tokens" not in str(caught.value)
            assert chat.messages == []


def test_undo_and_cancel_leave_a_usable_state(model, long_chat):
    before = long_chat.messages
    answer = long_chat.send("Tell me a story about a bunny.", max_tokens=40)
    next(answer)
    answer.cancel()
    answer.run()
    assert long_chat.messages[-1]["content"] == answer.result.text != ""
    long_chat.undo()
    assert long_chat.send("Hello!").run().text
    assert 0 < long_chat.memory.retained <= long_chat.memory.slots
    long_chat.undo()
    assert long_chat.messages == before


def test_options_that_contradict_each_other(default_artefact):
    for options, message in (
        ({"kv_budget": "64MB", "kv_policy": "none"}, "--kv-budget conflicts with --kv-policy none"),
        ({"kv_policy": "lru"}, "cache policy 'lru'"),
        ({"kv_budget": "-1"}, "invalid size '-1'"),
        ({"kv_budget": 0}, "kv_budget is 0"),
    ):
        with pytest.raises(OptionError, match=message):
            Model.load(default_artefact, **options)
    with (
        Model.load(default_artefact, kv_budget=4000) as tight,
        pytest.raises(OptionError, match="give a larger --kv-budget"),
    ):
        tight.generate("Hello")


def test_a_backend_that_cannot_forget_refuses(default_artefact):
    pytest.importorskip("onnxruntime")
    with (
        Model.load(default_artefact, device="onnxruntime", kv_budget="64MB") as loaded,
        pytest.raises(UnsupportedError, match="onnxruntime backend has no cache that evicts"),
    ):
        loaded.new_chat().send("Hello!")


def test_budget_is_kept(default_artefact):
    with Model.load(default_artefact, threads=1, kv_budget="800kB") as loaded:
        chat = loaded.new_chat(temperature=0.0, max_tokens=8)
        talk(chat, 2)
        assert 600_000 < chat.cache_bytes <= 800_000
        chat.send("word " * 3000).run()
        assert chat.cache_bytes <= 800_000
        assert chat.memory.seen > 3000


def prefixes(model, folder, limit=8_000_000):
    model.engine.prefixes = PrefixCache(model.artefact.identity, limit, folder)
    return model.engine.prefixes


@pytest.fixture
def wide(model):
    """Give a cache with room for a long system message, and no prefixes afterwards."""
    model.engine.context_tokens = 512
    yield model
    model.engine.context_tokens, model.engine.prefixes = 128, None


def test_a_beginning_is_read_once(wide, tmp_path):
    plain = [wide.new_chat(system=LONG).send(t).run() for t in ("Hello!", "How are you?")]
    folder = tmp_path / "prefixes"
    prefixes(wide, folder)
    first = wide.new_chat(system=LONG).send("Hello!").run()
    second = wide.new_chat(system=LONG).send("How are you?").run()
    assert (first.tokens, second.tokens) == (plain[0].tokens, plain[1].tokens)
    assert first.stats.cached_tokens == 0
    assert second.stats.cached_tokens > 100
    assert folder.stat().st_mode & 0o777 == 0o700
    wide.engine.prefixes.close()
    prefixes(wide, folder)  # as another process would
    again = wide.new_chat(system=LONG).send("How are you?").run()
    assert again.tokens == second.tokens
    assert again.stats.cached_tokens > 100


def test_a_damaged_prefix_is_a_miss(wide, tmp_path):
    prefixes(wide, tmp_path / "p")
    first = wide.new_chat(system=LONG).send("Hello!").run()
    wide.engine.prefixes.close()
    (path,) = (tmp_path / "p").glob("*.prefix")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    prefixes(wide, tmp_path / "p")
    second = wide.new_chat(system=LONG).send("Hello!").run()
    assert second.tokens == first.tokens
    assert second.stats.cached_tokens == 0


def test_prefixes_stay_within_their_bytes(wide, tmp_path):
    store = prefixes(wide, tmp_path / "p")
    wide.new_chat(system=LONG).send("Hello!").run()
    one = store.nbytes
    store.close()
    store = prefixes(wide, tmp_path / "p", limit=int(2.5 * one))
    for i in range(4):
        wide.new_chat(system=f"{i} {LONG}").send("Hello!").run()
    assert 2 * one - 1000 < store.nbytes <= 2.5 * one
    store.close()
    files = list((tmp_path / "p").glob("*.prefix"))
    assert len(files) == 2
    assert sum(f.stat().st_size for f in files) < 2.6 * one


def test_session_option(default_artefact, tmp_path, capsys):
    path = tmp_path / "talk"
    arguments = ["chat", str(default_artefact), "Hello!", "--session", str(path), "--json"]
    arguments += ["--context", "128", "--max-tokens", "8", "--temperature", "0"]
    for turns in (2, 4):
        assert run(arguments) == 0
        values = json.loads(capsys.readouterr().out)
        assert values["text"]
        header = path.read_bytes()[16:].split(b'"sha256"')[0]
        assert header.count(b'"role"') == turns
    path.write_bytes(b"edgetokC" + bytes(100))
    assert run(arguments) == 0
    assert "hash mismatch" in capsys.readouterr().err
    assert path.read_bytes() == b"edgetokC" + bytes(100)
