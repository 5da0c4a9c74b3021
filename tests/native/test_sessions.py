"""Session files: what C writes Python opens, and back; damaged ones are refused."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest

import edgetok
from edgetok.errors import EdgetokError
from edgetok.formats.container import MAGIC, read_container
from edgetok.kernels_cpu.session import launch
from edgetok.session import FORMAT, VERSION
from tests.kernels_cpu.conftest import Guard
from tests.native.test_texts import export_texts

GREEDY = {"temperature": 0.0, "max_tokens": 24}
CONTEXT = 256
SYSTEM = 'You are a pirate. \n"Arr\\" \u00e9\U0001f600'
TEXTS = ["Tell me a story about a cat.\t", "Who\x01 is it? " + "And then? " * 60, "Why \U0001f408?"]
SAMPLING = {"top_p": 0.5, "stop": ("}", 'a"b\\', "\u00e9"), "seed": (1 << 64) - 1, "min_p": 1e-05}


@pytest.fixture(scope="module")
def bundled(repository):
    return repository / "models/default-4bit"


@pytest.fixture(scope="module", params=["recall", "window", "none"])
def pair(request, bundled, library, kernel_cache, tmp_path_factory):
    """The bundled model in Python and in C, and the policy of both."""
    policy, out = request.param, tmp_path_factory.mktemp("session")
    context = 1024 if policy == "none" else CONTEXT
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
        with edgetok.load(
            bundled, context=context, threads=1, kv_policy=policy, speculate=False
        ) as python:
            eos = python.engine.eos_tokens
            with export_texts(bundled, out, library, python.backend.spec, eos) as model:
                yield python, model, {"context_tokens": context, "policy": policy}


def say(chat, text, system=None):
    """An answer in C: its tokens and text."""
    chat.sample(**GREEDY)
    chat.say(text, system)
    tokens, said, _ = chat.answer()
    return tokens, said


def send(chat, text):
    answer = chat.send(text, **GREEDY).run()
    return list(answer.tokens), answer.text


def test_the_same_numbers_as_python():
    assert (launch.FORMAT, launch.VERSION, launch.CONTAINER) == (FORMAT, VERSION, MAGIC)


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_python_goes_on_where_c_ended(pair, tmp_path, system):
    python, model, options = pair
    path = tmp_path / "session"
    with model.chat(**options) as chat:
        answers = [say(chat, TEXTS[0], system)[1], say(chat, TEXTS[1])[1]]
        path.write_bytes(chat.session())
        opened = python.new_chat()
        opened.load(path)
        assert opened.system == system
        said = [turn["content"] for turn in opened.messages if turn["role"] != "system"]
        assert said == [TEXTS[0], answers[0], TEXTS[1], answers[1]]
        if options["policy"] != "none":
            assert opened._context.cache.save().block.tobytes() == chat.save()
            assert opened.used_tokens == chat.stats.tokens
        assert send(opened, TEXTS[2]) == say(chat, TEXTS[2])
        assert opened.last.stats.prompt_tokens == chat.stats.prompt_tokens
        if options["policy"] != "none":
            assert opened.last.stats.cached_tokens == chat.stats.cached_tokens > 0


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_c_goes_on_where_python_ended(pair, tmp_path, system):
    python, model, options = pair
    path = tmp_path / "session"
    chat = python.new_chat(system=system)
    chat.sampling = chat.sampling.with_changes(SAMPLING)
    for text in TEXTS[:2]:
        chat.send(text, **GREEDY).run()
    chat.save(path)
    with model.chat(**options) as native, model.chat(**options) as again:
        say(native, "Something else.", "Another one.")  # is replaced
        native.load_session(path.read_bytes())
        again.load_session(native.session())
        written = native.session()
        expected = send(chat, TEXTS[2])
        for other in (native, again):
            assert say(other, TEXTS[2]) == expected
            assert other.stats.prompt_tokens == chat.last.stats.prompt_tokens
        if options["policy"] != "none":
            assert native.stats.cached_tokens == chat.last.stats.cached_tokens > 0
    # What C writes of it is what Python wrote, options of sampling included.
    second = tmp_path / "second"
    second.write_bytes(written)
    found, wanted = (conversation(file, python) for file in (second, path))
    assert found == wanted
    opened = python.new_chat()
    opened.load(second)
    assert opened.sampling == chat.sampling


def conversation(path, python):
    """The JSON of a session, with its cache's bytes."""
    data = path.read_bytes()
    if data.startswith(b"{"):
        return json.loads(data), []
    head, parts = read_container(path, python.artefact.identity)
    return head, [part.tobytes() for part in parts]


def test_an_answer_under_way_and_one_that_is_missing(pair, tmp_path):
    python, model, options = pair
    path = tmp_path / "session"
    with model.chat(**options) as chat, model.chat(**options) as other:
        chat.sample(**GREEDY)
        chat.say(TEXTS[0], SYSTEM)
        outputs = chat.outputs()
        text = "".join(next(outputs)[1] for _ in range(5))
        path.write_bytes(chat.session())
        opened = python.new_chat()
        opened.load(path)
        assert opened.messages[-1] == {"role": "assistant", "content": text}
        whole = text + "".join(piece for _, piece, _ in outputs)  # goes on
        say(other, TEXTS[0], SYSTEM)
        assert say(chat, TEXTS[2]) == say(other, TEXTS[2])
        assert whole
    with model.chat(**options) as empty, model.chat(**options) as other:
        path.write_bytes(empty.session())
        opened.load(path)
        assert opened.messages == []
        empty.load_session(path.read_bytes())
        assert say(empty, TEXTS[0]) == say(other, TEXTS[0])


def test_a_message_without_answer_is_replaced(pair, tmp_path):
    python, model, options = pair
    path = tmp_path / "session"
    chat = python.new_chat(system=SYSTEM)
    send(chat, TEXTS[0])
    answer = chat.send("never answered", **GREEDY)
    answer.cancel()
    answer.run()
    chat.save(path)
    with model.chat(**options) as native:
        native.load_session(path.read_bytes())
        assert say(native, TEXTS[2]) == send(chat, TEXTS[2])


def test_what_is_refused(pair, tmp_path, bundled):
    python, model, options = pair
    path = tmp_path / "session"
    chat = python.new_chat(system=SYSTEM)
    send(chat, TEXTS[0])
    chat.save(path)
    content = path.read_bytes()
    foreign = content.replace(python.artefact.identity.encode(), b"0" * 64)
    edited = content.replace(b"pirate", b"parrot")
    with model.chat(**options) as native:
        tokens = say(native, TEXTS[1], "A cat.")[0]
        before = native.session()
        for wrong, reason in (
            (b"", "not a session file"),
            (b"x" * 500, "not a session file"),
            (content[: len(content) // 2], "damaged|not a session"),
            (content[:-1], "damaged"),
            (content + b" x", "damaged"),
            (edited, "damaged"),
            (rehashed(foreign), "another model"),
            (rehashed(content.replace(b'"version"', b'"verzion"')), "other fields"),
        ):
            with pytest.raises(EdgetokError, match=reason):
                native.load_session(wrong)
        assert native.session() == before
        if options["policy"] != "none":  # another cache's
            others = ((512, options["policy"], "of another shape"), (64, "none", "holds 64"))
            for size, policy, reason in others:
                with (
                    model.chat(size, policy=policy) as other,
                    pytest.raises(EdgetokError, match=reason),
                ):
                    other.load_session(content)
        assert tokens


def rehashed(content: bytes) -> bytes:
    """The file with hashes that fit."""

    def body(value):
        value = {key: part for key, part in value.items() if key != "sha256"}
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return value | {"sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()}

    if not content.startswith(MAGIC):
        return json.dumps(body(json.loads(content)), ensure_ascii=False).encode()
    size = int.from_bytes(content[8:16], "little")
    head = json.loads(content[16 : 16 + size])
    head["session"] = body(head["session"])
    text = json.dumps(head, ensure_ascii=False).encode()
    whole = MAGIC + len(text).to_bytes(8, "little") + text + content[16 + size : -32]
    return whole + hashlib.sha256(whole).digest()


def with_digest(content: bytes) -> bytes:
    """A container's last hash made right, so that the reader goes on to what is damaged."""
    if not content.startswith(MAGIC) or len(content) < 32:
        return content
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


@pytest.mark.parametrize("at_end", [True, False])
def test_damaged_files_between_guard_pages(pair, tmp_path, at_end):
    """Nothing beyond the file is read; what C takes goes on, and Python takes it, too."""
    python, model, options = pair
    path, rng, guard = tmp_path / "session", random.Random(at_end), Guard()
    chat = python.new_chat(system="Be kind.")
    send(chat, TEXTS[0])
    chat.save(path)
    content = path.read_bytes()
    text_end = len(content)
    if content.startswith(MAGIC):
        text_end = 16 + int.from_bytes(content[8:16], "little")
    taken = 0
    with model.chat(**options) as native:
        for i in range(500):
            wrong = bytearray(content)
            for _ in range(rng.randrange(1, 4)):
                place = rng.randrange(text_end if i % 4 else min(len(wrong), text_end + 2000))
                wrong[place] = rng.choice(b'{}[]",:\\u0dn \xff\x80' if i % 2 else bytes(range(256)))
            if i % 5 == 0:
                del wrong[rng.randrange(len(wrong)) :]
            if i % 7 == 0:
                at = rng.randrange(text_end)
                wrong[at:at] = rng.choice([b"[" * 40, b"\\ud800", b'{"a":' * 9, b" \n\t", b"\x00"])
            given = with_digest(bytes(wrong)) if i % 3 else bytes(wrong)
            placed = guard(np.frombuffer(given or b"x", np.uint8), at_end)
            try:
                native.load_session(placed.ctypes.data, len(given))
            except EdgetokError:
                continue
            taken += 1
            if i % 4:  # not of the cache's block, where Python is stricter about what nobody reads
                path.write_bytes(given)
                python.new_chat().load(path)
            say(native, "Hi")
        native.load_session(content)
        assert say(native, TEXTS[2]) == send(chat, TEXTS[2])
    assert taken < 250
