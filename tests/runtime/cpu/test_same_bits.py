"""Logits depend on the tokens before them and on nothing else: not on what was forgotten since."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.kernels_cpu.attention.launch import KV_BITS
from edgetok.model import Model
from edgetok.runtime.cpu.backend import CpuBackend
from tests.tiny import VOCAB_SIZE

TOKENS = np.random.default_rng(5).integers(3, VOCAB_SIZE, 120).astype(np.int32)
OTHERS = np.random.default_rng(6).integers(3, VOCAB_SIZE, 120).astype(np.int32)


@pytest.fixture
def open_backend(kernel_cache):
    opened = []

    def make(folder, **options):
        options = {"threads": 1, "block_tokens": 40, "cache_dir": kernel_cache} | options
        opened.append(CpuBackend(folder, **options))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


def step_by_step(backend, cache, tokens):
    return [backend.forward(cache, tokens[i : i + 1]).tobytes() for i in range(len(tokens))]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gemma2"])
@pytest.mark.parametrize("kv_bits", KV_BITS)
def test_cut_and_continued_is_never_having_gone_further(family, kv_bits, tiny, open_backend):
    backend = open_backend(tiny(family, 4).artefact, kv_bits=kv_bits)
    straight = backend.new_cache(128)
    backend.forward(straight, TOKENS[:20])
    expected = step_by_step(backend, straight, TOKENS[20:60])
    for capacity in (128, 4096):
        cache = backend.new_cache(capacity)
        backend.forward(cache, TOKENS[:20])
        for wrong in (1, 7, 60):  # drafts that were rejected
            backend.forward(cache, OTHERS[:wrong])
            # A ring that has overwritten what is needed says no, and the caller reads again.
            if not cache.truncate(20):
                cache.clear()
                backend.forward(cache, TOKENS[:20])
        for i in range(20, 60):
            assert backend.forward(cache, TOKENS[i : i + 1]).tobytes() == expected[i - 20], i
            if i % 3 == 0:
                backend.forward(cache, OTHERS[i : i + 4])
                assert cache.truncate(i + 1)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kv_bits", KV_BITS)
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_a_prompt_may_be_cut_anywhere(family, kv_bits, compute, tiny, open_backend):
    backend = open_backend(tiny(family, 4).artefact, kv_bits=kv_bits, compute=compute)
    expected = step_by_step(backend, backend.new_cache(64), TOKENS[:40])
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cache, at = backend.new_cache(64), 0
        while at < 40:
            size = int(rng.integers(1, 40 - at + 1))
            every = seed % 2 == 0
            found = backend.forward(cache, TOKENS[at : at + size], all_logits=every)
            at += size
            for row in range(size) if every else [size - 1]:
                one = found[row] if every else found
                assert one.tobytes() == expected[at - size + row], (at, row)


@pytest.mark.parametrize("kv_bits", KV_BITS)
@pytest.mark.parametrize("threads", [1, 2])
def test_retry_repeats(kv_bits, threads, default_artefact, kernel_cache, monkeypatch):
    monkeypatch.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
    with Model.load(
        default_artefact, threads=threads, context=512, kv_bits=kv_bits, kv_policy="none"
    ) as model:
        model.sampling = model.sampling.with_changes({"temperature": 0.0, "max_tokens": 40})
        chat = model.new_chat()
        chat.send("My number is 4711.").run()
        first = chat.send("Tell me a story about the number.").run().tokens
        for _ in range(3):
            assert chat.retry().run().tokens == first
        chat.undo()
        assert chat.send("Tell me a story about the number.").run().tokens == first
