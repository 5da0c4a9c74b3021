"""Saved caches in files: what they take, what is refused unread, what earlier versions wrote."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tracemalloc
from concurrent.futures import wait

import numpy as np
import pytest

from edgetok.cache import state as block
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.cache.saved import COUNTERS
from edgetok.cache.state import CacheState
from edgetok.cache.state_file import SavedCache, cache_parts, saved_cache
from edgetok.errors import OutputError, SessionError
from edgetok.formats.container import is_container, read_container, write_container
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from edgetok.runtime.cpu.cache_memory import CacheStore, new_cache
from edgetok.session import Session, _digest, read_session, write_session

MODEL = "ab" * 32
SPEC = DecoderSpec(
    family="test",
    vocab_size=11,
    hidden_size=576,
    intermediate_size=8,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    layers=(LayerSpec(),) * 30,
    ropes=(RopeSpec(theta=1e4, rotary_dim=64),),
    context_tokens=8192,
    norm_eps=1e-5,
    attn_scale=0.125,
)
SESSION = Session(model=MODEL, system=None, turns=(), sampling={})


def make(capacity=1000):
    return new_cache(SPEC, CacheStore(1), capacity_tokens=capacity, kv_bits=8, block_tokens=256)


def filled(tokens):
    """A cache whose slots hold something of each token; no kernel runs."""
    cache = make()
    cache.begin(tokens)
    for page in cache.memory.groups[0]._pages.pages:
        page.memory[:] = 7
    cache.advance(tokens)
    return cache


def session_file(path, cache):
    write_session(path, SESSION, SavedCache([1] * cache.length_tokens, cache.save()))
    return path


def test_a_session_is_as_large_as_the_tokens_that_it_holds(tmp_path):
    """Thirty layers of three heads of 64 dims, as SmolLM2: 12,240 bytes a token at 8 bits."""
    path = session_file(tmp_path / "talk", filled(40))
    tokens = 40 * 30 * 3 * 2 * (64 + 4)
    assert tokens < path.stat().st_size < tokens + 2000
    _, _, saved = read_session(path, MODEL)
    other = make()
    other.load(saved.state)
    np.testing.assert_array_equal(other.save().block, saved.state.block)
    assert other.length_tokens == len(saved.tokens) == 40


def test_a_pipe_is_refused_at_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert not is_container(path)
    with pytest.raises(SessionError, match=r"not a regular file|cannot be read"):
        read_session(path, MODEL)
    with pytest.raises(SessionError, match="not a regular file"):
        read_container(path, MODEL)


@pytest.mark.parametrize("honest", [False, True])
def test_three_sparse_gigabytes_are_refused_unread(tmp_path, honest):
    """With the header of a small file, and with one that says three gigabytes."""
    path, huge = session_file(tmp_path / "talk", filled(40)), 3 << 30
    if honest:
        body = {"model": MODEL, "parts": [huge], "session": {}}
        text = json.dumps(body).encode()
        path.write_bytes(b"edgetokC" + len(text).to_bytes(8, "little") + text)
        huge += 16 + len(text) + 32
    os.truncate(path, huge)
    tracemalloc.start()
    with pytest.raises(SessionError, match=r"do not add up|expected at most"):
        read_session(path, MODEL, max_cache_bytes=make().nbytes)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_a_session_of_an_earlier_version_gives_its_conversation(tmp_path):
    """As it was written before state blocks: the memory of a cache in parts of the container."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    body = {
        "format": "edgetok-chat",
        "version": 1,
        "model": MODEL,
        "system": "Be kind.",
        "turns": turns,
        "sampling": {},
    }
    body["sha256"] = _digest(body)
    parts = [bytes(12), bytes(4096), bytes(64)]
    header = {
        "session": body,
        "shape": {"kind": "compact", "policy": "retain", "slots": 64},
        "numbers": {"length": 3, "shift": 0},
        "model": MODEL,
        "parts": [len(part) for part in parts],
    }
    text = json.dumps(header).encode()
    whole = b"edgetokC" + len(text).to_bytes(8, "little") + text + b"".join(parts)
    path = tmp_path / "talk"
    path.write_bytes(whole + hashlib.sha256(whole).digest())
    session, _, cache = read_session(path, MODEL)
    assert (session.system, list(session.turns), cache) == ("Be kind.", turns, None)
    path.write_bytes(whole + hashlib.sha256(whole + b"x").digest())
    with pytest.raises(SessionError, match="hash mismatch"):
        read_session(path, MODEL)


@pytest.mark.parametrize(
    ("name", "value"), [("shift", 1 << 50), ("queries", -1), ("dropped", -1), ("new", 9)]
)
def test_a_prefix_with_forged_counters_is_a_miss(tmp_path, name, value):
    """A right hash around wrong counters: nothing is restored, and the file goes."""
    tokens, cache = list(range(100)), filled(100)
    state = CacheState(cache.save().block.copy())
    state.section(block.COUNTERS, np.int64)[COUNTERS.index(name)] = value
    header, parts = cache_parts(SavedCache(tokens, state))
    folder = tmp_path / "prefixes"
    folder.mkdir(mode=0o700)
    path = folder / ("0" * 64 + ".prefix")
    write_container(path, MODEL, header, parts)
    prefixes = PrefixCache(MODEL, 100 << 20, folder)
    other = filled(5)
    before = other.save().block
    same, entry = prefixes.find([*tokens, 1], other)
    assert same == 100
    assert not prefixes.restore(entry, other)
    np.testing.assert_array_equal(other.save().block, before)
    assert prefixes.find([*tokens, 1], other) is None
    prefixes.close()
    assert not path.exists()


def test_a_prefix_is_restored_into_a_cache_of_any_capacity(tmp_path):
    """From disk the first time, then shared; one with less capacity does not find it."""
    tokens, folder = list(range(300)), tmp_path / "prefixes"
    store = CacheStore(1)

    def cache(capacity):
        return new_cache(SPEC, store, capacity_tokens=capacity, kv_bits=8, block_tokens=256)

    origin = cache(1000)
    for count in (256, 44):
        origin.begin(count)
        origin.advance(count)
    before = PrefixCache(MODEL, 100 << 20, folder)
    before.add(tokens, origin)
    before.close()
    prefixes = PrefixCache(MODEL, 100 << 20, folder)  # as another process would
    origin.clear()
    used = []
    for capacity in (600, 400):
        other = cache(capacity)
        same, entry = prefixes.find([*tokens, 1], other)
        assert prefixes.restore(entry, other)
        assert (same, other.length_tokens) == (300, 300)
        used.append((store.pool.used_bytes, other))
    assert used[0][0] == used[1][0] > 0
    assert prefixes.find([*tokens, 1], cache(299)) is None


def test_of_several_with_one_beginning_only_one_is_copied_from_disk(tmp_path):
    """The others are copied where they save more tokens than that takes: 300 take two."""
    folder, store = tmp_path / "prefixes", CacheStore(1)

    def make(capacity=1000):
        return new_cache(SPEC, store, capacity_tokens=capacity, kv_bits=8, block_tokens=256)

    def given(branch, known):
        return [*range(280), *[branch] * known, *[9000 + branch] * (40 - known)]

    origin = make()
    for count in (256, 44):
        origin.begin(count)
        origin.advance(count)
    before = PrefixCache(MODEL, 100 << 20, folder)
    for branch in (1, 2, 3):
        before.add([*range(280), *[branch] * 20], origin)
    before.close()
    prefixes = PrefixCache(MODEL, 100 << 20, folder)  # as another process would

    def ask(branch, known):
        cache = make()
        same, entry = prefixes.find(given(branch, known), cache)
        copied = isinstance(entry.held, CacheState)
        assert prefixes.restore(entry, cache)
        return same, copied

    assert ask(4, 0) == (280, True)
    assert [ask(branch, 0) for branch in (5, 6, 7)] == [(280, False)] * 3
    asked = [ask(branch, 1) for branch in (1, 2, 3)]
    assert sorted(asked) == [(280, False), (280, False), (281, False)]
    asked = [ask(branch, 3) for branch in (1, 2, 3)]
    assert sorted(asked) == [(283, False), (283, True), (283, True)]


def test_what_was_used_last_is_made_ready_in_the_background(tmp_path):
    """Then nothing is copied when it is wanted: its pages are there already, and are shared."""
    folder, store = tmp_path / "prefixes", CacheStore(1)

    def make(capacity):
        return new_cache(SPEC, store, capacity_tokens=capacity, kv_bits=8, block_tokens=256)

    origin = make(1000)
    origin.begin(200)
    origin.advance(200)
    expected = origin.save().block
    before = PrefixCache(MODEL, 100 << 20, folder)
    for first in (1, 2):
        before.add([first] * 200, origin)
    before.close()
    os.utime(next(folder.glob("*.prefix")), (1, 1))
    prefixes = PrefixCache(MODEL, 100 << 20, folder, make)
    origin.clear()
    prefixes.warm()
    prefixes.close()
    ready = [
        entry for entry in prefixes._entries.values() if not isinstance(entry.held, CacheState)
    ]
    assert [entry.name for entry in ready] == [list(prefixes._entries)[-1]]
    used, other = store.pool.used_bytes, make(400)
    assert used > 0
    assert prefixes.restore(prefixes.find([*ready[0].tokens, 1], other)[1], other)
    assert store.pool.used_bytes == used
    np.testing.assert_array_equal(other.save().block, expected)


def test_a_conversation_takes_the_place_of_its_beginnings(tmp_path, monkeypatch):
    """One entry and one file, written anew when it has grown by an eighth, and at the end."""
    from edgetok.cache import prefix_cache as module

    written, write = [], module.write_container

    def counted(path, model, header, parts):
        written.append(header["tokens"])
        write(path, model, header, parts)

    monkeypatch.setattr(module, "write_container", counted)
    folder, cache = tmp_path / "prefixes", make()
    prefixes = PrefixCache(MODEL, 100 << 20, folder)

    def grow(length):
        cache.begin(length - cache.length_tokens)
        cache.advance(length - cache.length_tokens)
        prefixes.add(range(length), cache)
        for file in prefixes._files:
            file.result()
        assert len(prefixes._entries) == 1
        assert len(list(folder.glob("*.prefix"))) == 1
        assert prefixes.find(range(length + 1), cache)[0] == length

    for length in (100, 110, 112, 113, 120):
        grow(length)
    assert written == [100, 113]
    prefixes.add(range(115), cache)  # its longer self serves for that
    prefixes.add(range(120), cache)
    prefixes.flush()
    prefixes.close()
    assert written == [100, 113, 120]
    again = PrefixCache(MODEL, 100 << 20, folder)
    assert again.find(range(200), cache)[0] == 120
    again.add([7] * 100, filled(100))
    assert len(again._entries) == 2
    again.close()
    assert len(list(folder.glob("*.prefix"))) == 2


def test_what_grows_while_it_is_written_leaves_one_file(tmp_path, monkeypatch):
    import threading

    from edgetok.cache import prefix_cache as module

    go, write = threading.Event(), module.write_container

    def slowly(*given):
        assert go.wait(60)
        write(*given)

    monkeypatch.setattr(module, "write_container", slowly)
    folder = tmp_path / "prefixes"
    prefixes = PrefixCache(MODEL, 100 << 20, folder)
    for length in (100, 105, 200):
        prefixes.add(range(length), filled(length))
    go.set()
    prefixes.close()
    (path,) = folder.glob("*.prefix")
    again = PrefixCache(MODEL, 100 << 20, folder)
    assert again.find(range(201), make())[0] == 200
    prefixes._drop(next(iter(prefixes._entries)))
    prefixes.close()
    assert not path.exists()


def test_nobody_waits_while_a_file_is_removed(tmp_path, monkeypatch):
    """Removing half a gigabyte takes as long as computing a turn's first token."""
    import threading
    from pathlib import Path

    go, unlink = threading.Event(), Path.unlink

    def slowly(path, *given, **named):
        if path.suffix == ".prefix":
            assert go.wait(60)
        unlink(path, *given, **named)

    monkeypatch.setattr(Path, "unlink", slowly)
    folder = tmp_path / "prefixes"
    prefixes = PrefixCache(MODEL, int(1.5 * filled(100).fork().held_bytes), folder)
    prefixes.add([1] * 100, filled(100))
    prefixes.flush()
    (first,) = folder.glob("*.prefix")
    prefixes.add([2] * 100, filled(100))
    assert prefixes.find([1] * 101, make()) is None
    assert prefixes.find([2] * 101, make())[0] == 100
    assert first.exists()
    go.set()
    prefixes.close()
    assert not first.exists()
    assert len(list(folder.glob("*.prefix"))) == 1


def test_files_are_written_in_the_background_rank(tmp_path):
    if sys.platform != "linux":
        pytest.skip("threads have no rank of their own here")
    prefixes = PrefixCache(MODEL, 100 << 20, tmp_path / "prefixes")
    prefixes.add([1] * 100, filled(100))
    rank = prefixes._writing.submit(os.getpriority, os.PRIO_PROCESS, 0).result()
    prefixes.close()
    assert rank >= 10 > os.getpriority(os.PRIO_PROCESS, 0)


def test_a_state_that_is_too_large_is_told_once():
    cache = filled(100)
    one = 4 * 100 + cache.fork().held_bytes
    prefixes = PrefixCache(MODEL, one)
    prefixes.add([1] * 100, cache)
    assert (prefixes.warning(), prefixes.too_large) == (None, 0)
    prefixes = PrefixCache(MODEL, one - 1)
    for first in (1, 2):
        prefixes.add([first] * 100, cache)
    assert prefixes.find([1] * 101, cache) is None
    assert prefixes.too_large == 2
    line = prefixes.warning()
    assert line.startswith("a prompt of 100 tokens takes ")
    assert line.endswith("give a larger --prefix-cache")
    assert prefixes.warning() is None


def test_files_are_written_by_another_thread(tmp_path, monkeypatch):
    """Nobody waits for the disk; what went meanwhile leaves no file; an error is told later."""
    import threading

    from edgetok.cache import prefix_cache as module

    go, threads = threading.Event(), set()
    write = module.write_container

    def slowly(path, *given):
        threads.add(threading.current_thread())
        assert go.wait(60)
        write(path, *given)

    monkeypatch.setattr(module, "write_container", slowly)
    folder = tmp_path / "prefixes"
    cache = filled(100)
    one = 4 * 100 + cache.fork().held_bytes
    prefixes = PrefixCache(MODEL, int(1.5 * one), folder)
    for first in (1, 2):  # the second pushes the first out, whose file is being written
        prefixes.add([first] * 100, cache)
    assert not list(folder.glob("*.prefix"))
    assert prefixes.find([2] * 101, cache) is not None
    go.set()
    prefixes.flush()
    assert len(list(folder.glob("*.prefix"))) == 1
    assert threading.main_thread() not in threads
    prefixes.close()
    assert not any(thread.is_alive() for thread in threads)
    again = PrefixCache(MODEL, 100 << 20, folder)
    assert again.find([1] * 101, cache) is None
    assert again.find([2] * 101, cache)[0] == 100

    def full(*given):
        raise OutputError("the disk is full")

    monkeypatch.setattr(module, "write_container", full)
    again.add([3] * 100, cache)
    with pytest.raises(OutputError, match="the disk is full"):
        again.flush()
    again.add([4] * 100, cache)
    again.close()


def test_a_full_disk_fails_nobody_and_is_told_once(tmp_path, monkeypatch):
    """Answers go on, and what they have read stays in memory."""
    from edgetok.cache import prefix_cache as module

    def full(*given):
        raise OutputError("the disk is full")

    monkeypatch.setattr(module, "write_container", full)
    cache = filled(100)
    prefixes = PrefixCache(MODEL, 100 << 20, tmp_path / "prefixes")
    told = []
    for first in range(4):
        prefixes.add([first] * 100, cache)
        wait(prefixes._files)
        told.append(prefixes.warning())
    assert prefixes.unwritten == 3  # the fourth is not looked at yet
    assert told[0] is None
    assert "the disk is full" in told[1]
    assert told[2:] == [None, None]
    assert all(prefixes.find([first] * 101, cache) is not None for first in range(4))
    prefixes.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda header, parts: header.update(tokens=39),
        lambda header, parts: header.update(tokens="40"),
        lambda header, parts: header.clear(),
        lambda header, parts: parts.pop(),
        lambda header, parts: parts.append(parts[0]),
        lambda header, parts: parts.__setitem__(0, parts[0][:-1]),
        lambda header, parts: parts.__setitem__(0, parts[0][:-4]),
        lambda header, parts: parts.__setitem__(1, parts[1][:-1]),
        lambda header, parts: parts[0].__setitem__(3, 255),  # a negative token
    ],
)
def test_parts_that_do_not_go_together_are_refused(tmp_path, change):
    cache = filled(40)
    header, parts = cache_parts(SavedCache([1] * 40, cache.save()))
    saved_cache(tmp_path, header, parts)
    change(header, parts)
    with pytest.raises(SessionError):
        saved_cache(tmp_path, header, parts)
