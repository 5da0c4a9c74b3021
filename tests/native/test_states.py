"""States of recurrent layers in C as in Python: rings, snapshots, going back, saved blocks."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import edgetok
from edgetok.cache.limits import CacheLimits
from edgetok.cache.recurrent import MOST_SNAPSHOTS
from edgetok.cache.state import SNAPSHOT, CacheState
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import EdgetokError
from edgetok.native.plan import PLAN_FILE, Section
from tests.native.conftest import write_export
from tests.native.test_plan import refuses_version, rehashed, sections
from tests.native.test_texts import export_texts
from tests.native.test_tokens import GREEDY, native_answer, python_answer
from tests.tiny import VOCAB_SIZE, WITH_STATES, tiny_checkpoint

LONG = 2048


def draw(rng, count):
    return rng.integers(3, VOCAB_SIZE, count).astype(np.int32)


def state_of(block: bytes) -> CacheState:
    return CacheState(np.frombuffer(block, np.uint8).copy())


def snapshots(state: CacheState) -> int:
    return sum(kind == SNAPSHOT for kind, _ in state.sections)


class Pair:
    """A chat in C and a cache in Python that are told the same."""

    def __init__(self, chat, backend, cache) -> None:
        self.chat, self.backend, self.cache = chat, backend, cache
        self.tokens: list[int] = []

    def prefill(self, prompt, answer):
        """Read a prompt and write some tokens; both go back to what they hold of it."""
        found = native_answer(self.chat, prompt, answer)
        same = next(
            (i for i, (a, b) in enumerate(zip(self.tokens, prompt, strict=False)) if a != b),
            min(len(self.tokens), len(prompt)),
        )
        same = min(same, len(prompt) - 1)
        if same < self.cache.length_tokens:
            same = self.cache.reachable(same)
            assert self.cache.truncate(same)
        assert self.chat.stats.cached_tokens == same
        assert found == python_answer(self.backend, self.cache, prompt[same:], GREEDY, answer)
        self.tokens = [*prompt.tolist(), *found[:-1]]

    def truncate(self, length):
        """Go back."""
        left = self.cache.reachable(length)
        assert self.cache.truncate(left)
        assert self.chat.truncate(length) == left
        self.tokens = self.tokens[:left]

    def same_bytes(self):
        """Compare all that a block holds: tables, keys, values, states and snapshots."""
        found = self.chat.save()
        assert found == self.cache.save().block.tobytes()
        return state_of(found)


@pytest.mark.parametrize("family", WITH_STATES)
def test_snapshots_are_those_of_python(both, trained, family):
    """A conversation of many turns, answers said again, and one long answer."""
    model, backend = both(trained(family, LONG), threads=2)
    rng, most = np.random.default_rng(5), 0
    with model.chat(LONG, policy="none") as chat:
        pair = Pair(chat, backend, backend.new_cache(LONG))
        for turn in range(60):
            if turn % 7 == 6:
                pair.truncate(int(rng.integers(len(pair.tokens))))
                pair.same_bytes()
            kept = len(pair.tokens) - int(rng.integers(0, 12)) * (turn % 5 == 4)
            said = draw(rng, int(rng.integers(1, 60)))
            prompt = np.array([*pair.tokens[: max(0, kept)], *said], np.int32)
            pair.prefill(prompt, int(rng.integers(1, 8)))
            most = max(most, snapshots(pair.same_bytes()))
        pair.prefill(np.array([*pair.tokens[:200], 7], np.int32), 600)
        pair.same_bytes()
        pair.truncate(0)
        pair.prefill(draw(rng, 20), 3)
        pair.same_bytes()
    assert most > (6 if family == "lfm2" else 3)


def test_most_snapshots(both, trained):
    """Those that are missed least go, as in Python."""
    model, backend = both(trained("lfm2", LONG))
    rng = np.random.default_rng(6)
    with model.chat(LONG, policy="none") as chat:
        pair = Pair(chat, backend, backend.new_cache(LONG))
        for _ in range(MOST_SNAPSHOTS + 12):
            pair.prefill(np.array([*pair.tokens, *draw(rng, 20)], np.int32), 1)
        assert snapshots(pair.same_bytes()) == MOST_SNAPSHOTS + 1  # and the states now
        for length in range(len(pair.tokens) - 1, 0, -97):
            pair.truncate(min(length, len(pair.tokens)))
            pair.same_bytes()


@pytest.mark.parametrize("policy", ["none", "retain"])
@pytest.mark.parametrize("family", WITH_STATES)
def test_blocks_go_over_to_python_and_back(both, trained, family, policy):
    model, backend = both(trained(family, LONG), threads=2)
    size = 900 if policy == "none" else 128

    def python():
        if policy == "none":
            return backend.new_cache(size)
        return backend.new_bounded_cache(size, CacheLimits(policy=policy))

    rng = np.random.default_rng(9)
    prompt, more = draw(rng, 700), draw(rng, 25)
    whole = np.concatenate([prompt, more])
    with model.chat(size, policy=policy) as chat, model.chat(size, policy=policy) as second:
        native_answer(chat, prompt[:300], 1)
        native_answer(chat, prompt, 1)
        block = chat.save()
        assert snapshots(state_of(block)) > 1
        cache = python()
        cache.load(state_of(block))
        found = native_answer(chat, whole, 20)
        assert found == python_answer(backend, cache, more, GREEDY, 20)
        # And back, from a cache that Python filled.
        cache = python()
        backend.forward(cache, prompt[:300])
        backend.forward(cache, prompt[300:])
        second.restore(cache.save().block.tobytes(), prompt.tolist())
        assert native_answer(second, whole, 20) == found
        assert second.stats.cached_tokens == len(prompt)
        # A snapshot that came with the block is gone back to.
        left = cache.reachable(350)
        assert second.truncate(350) == left
        if left:
            cache.truncate(left)
            again = np.concatenate([prompt[:left], more])
            found = native_answer(second, again, 10)
            assert second.stats.cached_tokens == left
            assert found == python_answer(backend, cache, more, GREEDY, 10)


@pytest.mark.parametrize("family", WITH_STATES)
def test_damaged_blocks_are_refused(both, trained, family):
    model, _ = both(trained(family, LONG))
    rng = np.random.default_rng(0)
    prompt = draw(rng, 60)
    with model.chat(256, policy="none") as chat:
        native_answer(chat, prompt[:30], 1)
        native_answer(chat, prompt, 1)
        block = chat.save()
        at = {}
        for i in range(struct.unpack_from("<I", block, 12)[0]):
            kind, group, offset, nbytes = struct.unpack_from("<IIQQ", block, 24 + 32 * i)
            at[kind, group] = offset, nbytes
        first, nbytes = at[SNAPSHOT, 0]
        broken = [
            (first, "<q", 61),  # of more tokens than there are
            (first, "<q", 0),
            (first + 8, "<q", 3),
            (first + 16, "<f", np.inf),
            (first + nbytes - 4, "<f", np.nan),
            (24 + 32 * 3 + 16, "<Q", 1),
        ]
        for place, kind, value in broken:
            wrong = bytearray(block)
            struct.pack_into(kind, wrong, place, value)
            with pytest.raises(EdgetokError, match="saved cache"):
                chat.restore(bytes(wrong), prompt.tolist())
        head = 24 + 32 * len(at)
        for _ in range(300):
            wrong = bytearray(block)
            for place in rng.integers(0, head + 400, 1 + rng.integers(4)).tolist():
                wrong[place] = int(rng.integers(256))
            try:
                chat.restore(bytes(wrong), prompt.tolist())
            except EdgetokError:
                continue
            native_answer(chat, prompt, 3)  # what was let through runs
        chat.restore(block, prompt.tolist())
        assert chat.save() == block


def test_rings_that_cannot_be_are_refused(library, tiny, tmp_path):
    model = tiny("lfm2", 4)
    out = write_export(model.artefact, tmp_path / "out")
    content = (out / PLAN_FILE).read_bytes()
    begin, size = sections(content)[Section.STATES]
    rings = np.frombuffer(content, "<i8", size // 8, begin).reshape(-1, 4).tolist()
    assert [ring[1:] for ring in rings] == [[34, model.spec.hidden_size, 2]] * len(rings)
    wrongs = ((-1, 2 * model.spec.num_layers), (0, 1, 1 << 40), (0, 1 << 40), (0, 34))
    for column, values in enumerate(wrongs):
        for value in values:
            wrong = bytearray(content)
            struct.pack_into("<q", wrong, begin + 8 * column, value)
            (out / PLAN_FILE).write_bytes(rehashed(wrong))
            with pytest.raises(EdgetokError, match="numbers contradict"):
                library.open(out)
    refuses_version(library, out, content, 2)


@pytest.mark.parametrize("opening", ["", "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize("family", ["lfm2", "qwen3_next"])
def test_a_turn_goes_back_to_where_the_answer_was_opened(
    library, kernel_cache, tmp_path, monkeypatch, family, opening
):
    """Conversations of a template whose history lacks the opening, as in Python."""
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    folder = tiny_checkpoint(family, tmp_path / "model", max_position_embeddings=LONG)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    opened = settings["chat_template"].replace("<|assistant|>", "<|assistant|>" + opening)
    path.write_text(json.dumps(settings | {"chat_template": opened}))
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    convert(str(folder), tmp_path / "artefact", options)
    out = tmp_path / "native"
    out.mkdir()
    chosen = {"kv_policy": "none", "context": LONG, "threads": 1, "speculate": False}
    with edgetok.load(tmp_path / "artefact", **chosen) as python:
        artefact = (tmp_path / "artefact", out, library, python.backend.spec)
        chat = python.new_chat()
        with (
            export_texts(*artefact, python.engine.eos_tokens) as model,
            model.chat(LONG, policy="none") as native,
        ):
            texts = ["the small dog. " * 8, "they ran to the sea. " * 40, "the mat"]
            for text in [*texts, *["and then they ran to a cat"] * MOST_SNAPSHOTS]:
                answer = chat.send(text, temperature=0.0, max_tokens=8).run()
                native.sample(max_tokens=8, temperature=0.0)
                native.say(text)
                tokens, _, _ = native.answer()
                assert tokens == list(answer.tokens)
                assert native.stats.prompt_tokens == answer.stats.prompt_tokens
                assert native.stats.cached_tokens == answer.stats.cached_tokens
            assert answer.stats.cached_tokens > answer.stats.prompt_tokens - 100 > 300
            block = native.save()
            assert snapshots(state_of(block)) == MOST_SNAPSHOTS + 1  # some had to go
            assert block == chat._context.cache.save().block.tobytes()
