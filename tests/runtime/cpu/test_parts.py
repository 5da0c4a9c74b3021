"""Random lives of sequences that share steps, against each sequence alone: see `schedules.py`."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.cache.policies.policy import POLICIES
from edgetok.errors import ContextError, OptionError, ShapeError
from edgetok.kernels_cpu.attention.launch import KV_BITS
from edgetok.runtime.backend import Part
from edgetok.runtime.cpu.backend import CpuBackend
from tests.schedules import Alone, check_evicting, check_plain, write_random
from tests.tiny import VOCAB_SIZE

# All kinds of layers: windows, softcaps, states, experts, sinks as parameters, shared keys.
FAMILIES = (
    "llama",
    "gemma3_text",
    "gemma2",
    "lfm2",
    "qwen3_next",
    "granitemoehybrid",
    "gpt_oss",
    "gemma4_text",
    "lfm3",
)


@pytest.fixture(scope="module")
def random_artefact(tmp_path_factory):
    """Makes (once) a family's artefact."""
    root = tmp_path_factory.mktemp("random")

    def make(family):
        folder = root / family
        return folder if folder.exists() else write_random(family, folder)

    return make


@pytest.fixture
def open_backend(kernel_cache):
    opened = []

    def make(folder, **options):
        options = {"threads": 2, "block_tokens": 48, "cache_dir": kernel_cache} | options
        opened.append(CpuBackend(folder, **options))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_bits", KV_BITS)
def test_nobody_knows_what_company_it_had(family, kv_bits, random_artefact, open_backend):
    backend = open_backend(random_artefact(family), kv_bits=kv_bits)
    alone = Alone(backend)
    assert sum(check_plain(backend, alone, seed) for seed in range(10)) > 400


@pytest.mark.parametrize("kv_bits", [8, 32])
def test_float_products(kv_bits, random_artefact, open_backend):
    folder = random_artefact("gemma3_text")
    backend = open_backend(folder, kv_bits=kv_bits, compute="float32")
    alone = Alone(backend)
    for seed in range(4):
        check_plain(backend, alone, seed)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("kv_bits", KV_BITS)
def test_evicting_caches_with_the_same_chunks(policy, kv_bits, random_artefact, open_backend):
    family = {4: "gemma3_text", 5: "gpt_oss", 8: "llama", 16: "qwen3_next", 32: "gemma4_text"}
    folder = random_artefact(family[kv_bits])
    backend = open_backend(folder, kv_bits=kv_bits, block_tokens=32)
    evicted, drafted = np.sum([check_evicting(backend, policy, seed) for seed in range(4)], axis=0)
    assert evicted
    assert (drafted > 0) == (not POLICIES[policy].remembers)


def test_schedules_find_bits_that_depend_on_company(random_artefact, open_backend, monkeypatch):
    backend = open_backend(random_artefact("llama"))
    step = backend.step

    def changed(parts):
        apart = np.float32(1e-3 if len(parts) > 1 else 0.0)
        return [logits + apart for logits in step(parts)]

    monkeypatch.setattr(backend, "step", changed)
    with pytest.raises(AssertionError):
        check_plain(backend, Alone(backend), 0)
    with pytest.raises(AssertionError):
        check_evicting(backend, "recall", 0)


def test_which_logits_are_wanted(tiny, open_backend):
    """None, one, some and all, more of them than are computed at once."""
    backend = open_backend(tiny("llama", 4).artefact, compute="float32", block_tokens=90)
    ids = np.random.default_rng(1).integers(3, VOCAB_SIZE, 80).astype(np.int32)
    whole = backend.forward(backend.new_cache(80), ids, all_logits=True)
    for wanted in ((0, 0, 0), (0, 1, 0), (30, 1, 5), (30, 40, 10), (0, 40, 0)):
        caches = [backend.new_cache(80) for _ in range(3)]
        cuts = (ids[:30], ids[:40], ids[:10])
        parts = [Part(c, i, n) for c, i, n in zip(caches, cuts, wanted, strict=True)]
        for found, part in zip(backend.step(parts), parts, strict=True):
            end = part.tokens.size
            np.testing.assert_array_equal(found, whole[end - part.logits : end])
        for cache, cut in zip(caches, cuts, strict=True):  # all left the same behind
            (found,) = backend.step([Part(cache, ids[cut.size : cut.size + 1], 1)])
            np.testing.assert_array_equal(found[0], whole[cut.size])


def test_threads_and_parts(tiny, open_backend):
    model = tiny("llama", 4)
    ids = np.random.default_rng(2).integers(3, VOCAB_SIZE, (8, 40)).astype(np.int32)
    results = []
    for threads in (1, 2, 3):
        backend = open_backend(model.artefact, threads=threads)
        caches = [backend.new_cache(64) for _ in range(8)]
        for cache, row in zip(caches, ids, strict=True):
            backend.forward(cache, row[:16])
        for t in range(16, 40):
            parts = [Part(c, row[t : t + 1], 1) for c, row in zip(caches, ids, strict=True)]
            found = backend.step(parts)
        results.append(np.concatenate(found).tobytes())
    assert results[0] == results[1] == results[2]


def test_refusals_change_nothing(tiny, open_backend):
    backend = open_backend(tiny("llama", 4).artefact)
    one, two, small = (backend.new_cache(n) for n in (64, 64, 4))
    three = np.array([5, 6, 7], np.int32)
    backend.step([Part(small, three, 0)])
    bad = {
        ContextError: [Part(one, three, 1), Part(small, three, 1)],
        OptionError: [Part(one, three, 1), Part(two, np.array([VOCAB_SIZE], np.int32), 1)],
        ShapeError: [Part(one, three, 1), Part(one, three, 1)],
    }
    for error, parts in bad.items():
        with pytest.raises(error):
            backend.step(parts)
    half = np.full(backend.capabilities.step_rows // 2 + 1, 3, np.int32)
    with pytest.raises(ShapeError, match=f"{2 * half.size} rows of 2 parts"):
        backend.step([Part(one, half, 1), Part(two, half, 1)])
    with pytest.raises(ShapeError, match="4 with logits"):
        backend.step([Part(one, three, 4)])
    assert backend.step([]) == []
    assert (one.length_tokens, two.length_tokens, small.length_tokens) == (0, 0, 3)
