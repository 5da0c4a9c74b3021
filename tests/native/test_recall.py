"""`recall` in C as in Python: retrieval heads have more slots, the same tokens are kept."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetok.cache.limits import DEFAULT_POLICY, CacheLimits
from edgetok.cache.state import REST, SHAPE, TABLE, CacheState
from edgetok.errors import EdgetokError, SessionError
from edgetok.formats.layout import TensorFormat
from edgetok.formats.manifest import write_manifest
from edgetok.native.plan import PLAN_FILE, Section
from tests.native.conftest import write_export
from tests.native.test_plan import refuses_version, rehashed, sections
from tests.native.test_tokens import GREEDY, native_answer, python_answer
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import VOCAB_SIZE

TRAINED = 512
DEEP = {"llama": 2, "gemma3_text": 5, "lfm2": 5}  # times as many layers: 10 or 12 heads evict


@pytest.fixture
def deep(tiny, tmp_path):
    """Artefacts with many heads, of which a report says how much each looks back."""

    def make(family: str, scores: bool = True, times: int = 0, trained: int = TRAINED) -> Path:
        spec = tiny(family, 16).spec
        spec = replace(spec, layers=spec.layers * (times or DEEP[family]), context_tokens=trained)
        folder = tmp_path / f"deep-{family}"
        write_artefact(
            folder, spec, random_tensors(spec), uniform_formats(spec, TensorFormat(16, 32))
        )
        if scores:
            recall = np.random.default_rng(3).random((spec.num_layers, spec.num_kv_heads))
            (folder / "report.json").write_text(json.dumps({"heads": {"recall": recall.tolist()}}))
            write_manifest(folder, exporter="edgetok")
        return folder

    return make


def draw(seed, count):
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, count).astype(np.int32)


def recall(backend, context=128, budget=None):
    return backend.new_bounded_cache(context, CacheLimits(policy="recall", budget_bytes=budget))


def tables(block: bytes, groups: int) -> list[list[int]]:
    state = CacheState(np.frombuffer(block, np.uint8).copy())
    return [state.section(TABLE, np.int32, i).tolist() for i in range(groups)]


@pytest.mark.parametrize("kv_bits", [4, 8, 32])
@pytest.mark.parametrize("family", DEEP)
def test_the_tokens_of_python(both, deep, family, kv_bits):
    """Much is evicted, by narrow and by wide heads, and positions are lowered."""
    model, backend = both(deep(family), kv_bits, threads=2)
    prompt, cache = draw(8, 540), recall(backend)
    narrow, wide = (group for group, _ in cache.evicting)
    assert narrow.table.limit < cache.slots < wide.table.limit
    with model.chat(128, policy="recall") as chat, model.chat(128, policy="content") as other:
        native_answer(chat, prompt[:450], 1)
        backend.forward(cache, prompt[:450])
        assert chat.save() == cache.save().block.tobytes()  # attention mass as well
        found = native_answer(chat, prompt, 60)
        assert found == python_answer(backend, cache, prompt[450:], GREEDY, 60)
        assert chat.stats.position == cache.position < cache.length_tokens
        assert chat.stats.slots == cache.slots == 128
        held = tables(chat.save(), 2)
        assert chat.save() == cache.save().block.tobytes()  # rotated keys of windows as well
        assert max(held[1][: len(wide.heads)]) > max(held[0][: len(narrow.heads)])
        state = CacheState(np.frombuffer(chat.save(), np.uint8).copy())
        for i, (_, memory) in enumerate(cache.evicting):  # the block was the same
            assert state.section(REST, np.float32, i).reshape(memory.rests.shape)[:, 0].min() > 100
        native_answer(other, prompt, 60)
        with pytest.raises(EdgetokError, match="of another shape"):
            other.restore(chat.save(), [*prompt.tolist(), *found[:-1]])


@pytest.mark.parametrize("context", [256, 192])  # of 192 the latest alone would fill narrow heads
def test_few_heads_of_which_most_are_wide(both, deep, context):
    folder = deep("llama", times=1)
    report = json.loads((folder / "report.json").read_text())
    recall = report["heads"]["recall"]
    recall[:] = [[1.0] * len(layer) for layer in recall]
    recall[-1] = [0.2] * len(recall[-1])
    (folder / "report.json").write_text(json.dumps(report))
    write_manifest(folder, exporter="edgetok")
    model, backend = both(folder, 8)
    prompt, cache = draw(8, 540), backend.new_bounded_cache(context, CacheLimits(policy="recall"))
    narrow, wide = (group for group, _ in cache.evicting)
    assert len(narrow.heads) == 2 < len(wide.heads)
    assert narrow.table.limit < context < wide.table.limit
    assert cache.bounds.around
    with model.chat(context, policy="recall") as chat:
        native_answer(chat, prompt[:450], 1)
        backend.forward(cache, prompt[:450])
        assert chat.save() == cache.save().block.tobytes()
        assert native_answer(chat, prompt, 60) == python_answer(
            backend, cache, prompt[450:], GREEDY, 60
        )
        assert chat.save() == cache.save().block.tobytes()
    for row in range(2):
        kept = narrow.table.tokens[row, narrow.table.slots(row)]
        assert set(range(cache.sinks)) <= set(kept.tolist())


@pytest.mark.parametrize("trained", [TRAINED, 4096])  # of 4096 wide heads look back 768 tokens
def test_pinned_tokens_stay_in_wide_heads(both, deep, trained):
    """Sinks stay everywhere; narrow heads choose among what is pinned as among all else."""
    model, backend = both(deep("llama", trained=trained), 8)
    prompt, cache = draw(9, 1100), recall(backend)
    cache.pin(60)
    backend.forward(cache, prompt[:40])
    with model.chat(128, policy="recall") as chat:
        chat.restore(cache.save().block.tobytes(), prompt[:40].tolist())
        native_answer(chat, prompt, 1)
        backend.forward(cache, prompt[40:])
        assert chat.save() == cache.save().block.tobytes()
        assert cache.position <= trained
    for group, _ in cache.evicting:
        for row in range(group.table.rows):
            kept = set(group.table.tokens[row, group.table.slots(row)].tolist())
            assert set(range(60 if group.wide else 4)) <= kept
            assert group.wide or len(kept & set(range(4, 60))) < 50


@pytest.mark.parametrize("kv_bits", [8, 16])
@pytest.mark.parametrize("family", DEEP)
def test_states_go_over_to_python_and_back(both, deep, family, kv_bits):
    model, backend = both(deep(family), kv_bits)
    prompt, more = draw(9, 300), np.arange(5, 30, dtype=np.int32)
    whole = np.concatenate([prompt, more])
    with model.chat(128, policy="recall") as chat, model.chat(128, policy="recall") as second:
        native_answer(chat, prompt, 1)
        cache = recall(backend)
        cache.load(CacheState(np.frombuffer(chat.save(), np.uint8).copy()))
        found = native_answer(chat, whole, 20)
        assert found == python_answer(backend, cache, more, GREEDY, 20)
        # And back, from a cache that Python filled.
        cache = recall(backend)
        backend.forward(cache, prompt)
        saved = cache.save().block.tobytes()
        second.restore(saved, prompt.tolist())
        assert second.save() == saved
        assert native_answer(second, whole, 20) == found
        assert second.stats.cached_tokens == len(prompt)
        assert found == python_answer(backend, cache, more, GREEDY, 20)
        assert second.save() == cache.save().block.tobytes()
        left = cache.reachable(290)
        assert second.truncate(290) == left
        assert cache.truncate(left)
        assert second.save() == cache.save().block.tobytes()


def test_rests_that_cannot_be_are_refused(both, deep):
    model, backend = both(deep("llama"), 8)
    prompt, cache = draw(9, 300), recall(backend)
    backend.forward(cache, prompt)
    saved = cache.save()
    with model.chat(128, policy="recall") as chat:
        for at, value in ((0, np.nan), (0, -1.0), (0, 513.0), (20, np.inf), (-1, -np.inf)):
            bad = CacheState(saved.block.copy())
            bad.section(REST, np.float32, 1)[at] = value
            with pytest.raises(EdgetokError, match="rests of evicted tokens cannot be"):
                chat.restore(bad.block.tobytes(), prompt.tolist())
        parts = [(kind, i, saved.section(kind, np.uint8, i)) for kind, i in sorted(saved.sections)]
        short = [(kind, i, part[:-4] if kind == REST else part) for kind, i, part in parts]
        bad = CacheState.of(saved.shape, [part for part in short if part[0] != SHAPE])
        with pytest.raises(EdgetokError, match="rests of evicted tokens cannot be"):
            chat.restore(bad.block.tobytes(), prompt.tolist())
        # From before there were any: as in Python, they stand for nothing.
        old = CacheState.of(saved.shape, [part for part in parts if part[0] not in (SHAPE, REST)])
        chat.restore(saved.block.tobytes(), prompt.tolist())
        chat.restore(old.block.tobytes(), prompt.tolist())
        cache.load(old)
        assert chat.save() == cache.save().block.tobytes() != saved.block.tobytes()


def test_rests_that_are_not_where_they_should_be_are_refused(both, deep):
    """They are not taken for rests that are missing: what Python refuses C refuses."""
    model, backend = both(deep("llama"), 8)
    prompt, cache = draw(9, 300), recall(backend)
    backend.forward(cache, prompt)
    whole = cache.save().block
    (count,) = struct.unpack_from("<I", whole.tobytes(), 12)
    places = [24 + 32 * i for i in range(count)]
    rests = [at for at in places if struct.unpack_from("<I", whole.tobytes(), at)[0] == REST]
    assert len(rests) == 2
    with model.chat(128, policy="recall") as chat:
        for at in rests:
            kind, group, begin, size, _ = struct.unpack_from("<IIQQQ", whole.tobytes(), at)
            for entry in (
                (kind, group, whole.nbytes, size, 0),  # beyond the block
                (kind, group, begin, whole.nbytes, 0),
                (kind, group, begin + 4, size, 0),  # not aligned
                (kind, group, begin, size - 4, 0),
                (kind, group, begin, size, 1),
                (kind, 2, begin, size, 0),  # of a group that there is not
                (kind, 1 - group, begin, size, 0),  # twice of one
                (99, group, begin, size, 0),
            ):
                bad = whole.copy()
                bad[at : at + 32] = np.frombuffer(struct.pack("<IIQQQ", *entry), np.uint8)
                with pytest.raises(SessionError):
                    cache.load(CacheState(bad))
                with pytest.raises(EdgetokError, match="saved cache"):
                    chat.restore(bad.tobytes(), prompt.tolist())
        chat.restore(whole.tobytes(), prompt.tolist())
        assert chat.save() == whole.tobytes()


def test_going_back_before_what_is_gone_empties_rests(both, deep):
    model, backend = both(deep("llama"), 8)
    prompt, cache = draw(9, 300), recall(backend)
    with model.chat(128, policy="recall") as chat:
        native_answer(chat, prompt, 1)
        backend.forward(cache, prompt)
        mark = max(group.mark for group, _ in cache.evicting)
        narrow, wide = cache.evicting
        assert narrow[0].mark > 0
        for length in (299, mark - 1):  # nothing of the first was evicted
            left = cache.reachable(length)
            assert left in (length, 0)
            assert cache.truncate(left)
            assert chat.truncate(length) == left
            assert chat.save() == cache.save().block.tobytes()
            kept = [bool(memory.rests.any()) for _, memory in cache.evicting]
            assert kept[0] == (left >= mark)
        assert not narrow[1].rests.any()
        assert wide[1].rests.shape[0] == len(wide[0].heads)


def test_budgets_give_the_slots_of_python(both, deep):
    model, backend = both(deep("llama"), threads=2)
    least = recall(backend, 64).nbytes
    for budget in (least, least + 20_000, 2 * least, 3 * least, 10**9):
        expected = recall(backend, 512, budget)
        with model.chat(policy="recall", budget_bytes=budget) as chat:
            assert chat.stats.slots == expected.slots
            native_answer(chat, draw(1, 400), 2)
            state = CacheState(np.frombuffer(chat.save(), np.uint8).copy())
            assert state.shape == expected.shape
    with pytest.raises(EdgetokError, match=f"too small, this model needs {least}"):
        model.chat(policy="recall", budget_bytes=least - 1)


def test_the_default_is_that_of_python(both, deep):
    model, backend = both(deep("llama"))
    prompt = draw(2, 300)
    assert DEFAULT_POLICY == "recall"
    cache = backend.new_bounded_cache(128, CacheLimits())
    with model.chat(128) as chat:
        assert native_answer(chat, prompt, 30) == python_answer(backend, cache, prompt, GREEDY, 30)
        assert chat.save() == cache.save().block.tobytes()
    with model.chat(32) as chat, pytest.raises(EdgetokError, match="the context holds 32"):
        chat.prefill(prompt.tolist())  # too short to evict: refused, as `none` does
    refused = pytest.raises(EdgetokError, match="the context holds 128")
    with model.chat(128, policy="none") as chat, refused:
        chat.prefill(prompt.tolist())


def test_heads_alike(both, deep):
    """Without scores, `recall` keeps what `content` keeps, as in Python."""
    model, backend = both(deep("llama", scores=False))
    prompt, cache = draw(4, 400), recall(backend)
    assert len(cache.evicting) == 1
    with model.chat(128, policy="recall") as chat, model.chat(128, policy="content") as other:
        found = native_answer(chat, prompt, 30)
        assert found == python_answer(backend, cache, prompt, GREEDY, 30)
        native_answer(other, prompt, 30)
        assert tables(chat.save(), 1) == tables(other.save(), 1)


def test_wide_heads_that_cannot_be_are_refused(library, deep, tmp_path):
    out = write_export(deep("gemma3_text"), tmp_path / "out")
    content = (out / PLAN_FILE).read_bytes()
    begin, size = sections(content)[Section.WIDE]
    assert size == 20 * 2
    wide = np.frombuffer(content, np.uint8, size, begin).reshape(20, 2)
    assert wide.sum() == 2
    assert not wide[[i for i in range(20) if i % 4 != 2]].any()  # the others have windows
    kinds = [struct.unpack_from("<q", content, at)[0] for at in range(32, begin, 24)]
    entry = 32 + 24 * kinds.index(Section.WIDE)
    wrongs = ((begin, bytes(size)), (begin, b"\1" * size), (entry + 16, struct.pack("<q", 4)))
    for at, value in wrongs:
        wrong = bytearray(content)
        wrong[at : at + len(value)] = value
        (out / PLAN_FILE).write_bytes(rehashed(wrong))
        with pytest.raises(EdgetokError, match="numbers contradict"):
            library.open(out)
    refuses_version(library, out, content, 6)
