"""Layers with heads of two sizes, keys that others stored, inputs of their own: in C as in Python.

Models are made without transformers, which knows such a family from version 5 on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetok.cache.limits import CacheLimits
from edgetok.cache.state import CacheState
from edgetok.errors import EdgetokError
from edgetok.formats.layout import TensorFormat
from edgetok.sampling.options import SamplingOptions
from tests.native.test_tokens import GREEDY, PROMPT, TRAINED, native_answer, python_answer
from tests.rtn_artefact import add_constants, uniform_formats, write_artefact
from tests.runtime.cpu.test_gemma4 import CASES, spec_of, weights_of
from tests.tiny import VOCAB_SIZE

DRAWN = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, seed=3)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write the artefact of a case."""

    def make(case: str = "all", bits: int = 16, constants: bool = False) -> Path:
        spec = replace(spec_of(**CASES[case]), context_tokens=TRAINED)
        folder = tmp_path / case
        write_artefact(
            folder, spec, weights_of(spec), uniform_formats(spec, TensorFormat(bits, 32))
        )
        if constants:
            add_constants(folder)
        return folder

    return make


@pytest.mark.parametrize("kv_bits", [4, 5, 8, 16, 32])
@pytest.mark.parametrize("case", CASES)
def test_the_tokens_of_python(both, make, case, kv_bits):
    model, backend = both(make(case, 4), kv_bits, threads=1 + kv_bits % 3)
    with model.chat(64, policy="none") as chat:
        found = native_answer(chat, PROMPT, 20, temperature=1.0, seed=3)
        logits = np.array(chat.logits(), np.float32)
        cache = backend.new_cache(64)
        assert found == python_answer(backend, cache, PROMPT, DRAWN, 20)
        assert len(set(found)) > 5
        whole = np.concatenate([PROMPT, np.array(found[:-1], np.int32)])
        np.testing.assert_array_equal(logits, backend.forward(backend.new_cache(64), whole))
        assert chat.save() == cache.save().block.tobytes()


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("kv_bits", [4, 8, 32])
@pytest.mark.parametrize("policy", ["recall", "retain", "window"])
def test_bounded_caches(both, make, policy, kv_bits, constants):
    """Both sizes of heads are rotated where positions are lowered."""
    model, backend = both(make(constants=constants), kv_bits, threads=2)
    prompt = np.random.default_rng(8).integers(3, VOCAB_SIZE, 490).astype(np.int32)
    cache = backend.new_bounded_cache(320, CacheLimits(policy=policy))
    with model.chat(320, policy=policy) as chat:
        found = native_answer(chat, prompt, 60)
        assert found == python_answer(backend, cache, prompt, GREEDY, 60)
        assert chat.stats.position == cache.position < cache.length_tokens
        assert chat.stats.slots == cache.slots


def test_states_go_over_to_python_and_back(both, make):
    model, backend = both(make())
    prompt, more = np.random.default_rng(9).integers(3, VOCAB_SIZE, 300), np.arange(5, 30)
    prompt, more = prompt.astype(np.int32), more.astype(np.int32)
    limits = CacheLimits(policy="retain")
    with model.chat(128, policy="retain") as chat, model.chat(128, policy="retain") as second:
        native_answer(chat, prompt, 1)
        cache = backend.new_bounded_cache(128, limits)
        cache.load(CacheState(np.frombuffer(chat.save(), np.uint8).copy()))
        found = native_answer(chat, np.concatenate([prompt, more]), 20)
        assert found == python_answer(backend, cache, more, GREEDY, 20)
        cache = backend.new_bounded_cache(128, limits)
        backend.forward(cache, prompt)
        saved = cache.save().block.tobytes()
        second.restore(saved, prompt.tolist())
        assert second.save() == saved
        assert native_answer(second, np.concatenate([prompt, more]), 20) == found


def test_budgets_give_the_slots_of_python(both, make):
    model, backend = both(make(), threads=2)
    least = backend.new_bounded_cache(64, CacheLimits(policy="retain")).nbytes
    for budget in (least, 2 * least):
        limits = CacheLimits(policy="retain", budget_bytes=budget)
        with model.chat(policy="retain", budget_bytes=budget) as chat:
            assert chat.stats.slots == backend.new_bounded_cache(512, limits).slots
    with pytest.raises(EdgetokError, match=f"too small, this model needs {least}"):
        model.chat(policy="retain", budget_bytes=least - 1)
