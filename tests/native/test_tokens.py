"""The same tokens in C as in Python: every family, width, policy, way of sampling."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edgetok.cache.limits import CacheLimits
from edgetok.cache.state import CacheState
from edgetok.errors import EdgetokError
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler
from tests.rtn_artefact import add_constants
from tests.tiny import FAMILIES, VOCAB_SIZE, WITH_STATES

RNG = np.random.default_rng(7)
PROMPT = RNG.integers(3, VOCAB_SIZE, 37).astype(np.int32)
TRAINED = 512
GREEDY = SamplingOptions(temperature=0.0)
BOUNDED = ("llama", "gemma3_text", "smollm3", "mixtral", *WITH_STATES)


def python_answer(backend, cache, prompt, options, count, eos=(2,)):
    """Tokens of an answer, by NumPy's sampler."""
    sampler = Sampler(options, backend.vocab_size, prompt.tolist())
    logits, made = backend.forward(cache, prompt), []
    while len(made) < count:
        made.append(sampler.sample(logits))
        if made[-1] in eos or len(made) == count:
            break
        logits = backend.forward(cache, np.array(made[-1:], np.int32))
    return made


def native_answer(chat, prompt, count, **sampling):
    chat.sample(max_tokens=count, **sampling)
    chat.prefill(prompt.tolist())
    return [token for token, _, _ in chat.outputs()]


@pytest.mark.parametrize("kv_bits", [4, 5, 8, 16, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_widths(both, tiny, family, kv_bits):
    model, backend = both(tiny(family, 4).artefact, kv_bits, threads=1 + kv_bits % 3)
    with model.chat(64) as chat:
        found = native_answer(chat, PROMPT, 20)
        expected = python_answer(backend, backend.new_cache(64), PROMPT, GREEDY, 20)
        assert found == expected
        assert chat.stats.prompt_tokens == len(PROMPT)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_weights(both, tiny, family, bits):
    model, backend = both(tiny(family, bits).artefact)
    with model.chat() as chat:
        found = native_answer(chat, PROMPT, 20)
    assert found == python_answer(backend, backend.new_cache(64), PROMPT, GREEDY, 20)


def test_logits_are_the_same_bits(both, tiny):
    model, backend = both(tiny("gemma2", 4).artefact, threads=2)
    with model.chat(64) as chat:
        assert chat.logits() is None
        chat.prefill(PROMPT.tolist())
        found = np.array(chat.logits(), np.float32)
    np.testing.assert_array_equal(found, backend.forward(backend.new_cache(64), PROMPT))


@pytest.mark.parametrize("kv_bits", [4, 5, 8, 16, 32])
@pytest.mark.parametrize("policy", ["content", "retain", "window"])
@pytest.mark.parametrize("family", BOUNDED)
def test_bounded_caches(both, trained, family, policy, kv_bits):
    """Much is evicted, and positions are lowered."""
    model, backend = both(trained(family, TRAINED), kv_bits, threads=2)
    prompt = np.random.default_rng(8).integers(3, VOCAB_SIZE, 490).astype(np.int32)
    cache = backend.new_bounded_cache(320, CacheLimits(policy=policy))
    with model.chat(320, policy=policy) as chat:
        found = native_answer(chat, prompt, 60)
        assert found == python_answer(backend, cache, prompt, GREEDY, 60)
        assert chat.stats.position == cache.position < cache.length_tokens
        assert chat.stats.slots == cache.slots


@pytest.mark.parametrize("kv_bits", [4, 8])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bounded_caches_with_constants(both, trained, family, kv_bits):
    """Keys are scored and rotated as they were before the artefact's constants."""
    artefact = trained(family, TRAINED)
    add_constants(artefact)
    model, backend = both(artefact, kv_bits, threads=2)
    prompt = np.random.default_rng(8).integers(3, VOCAB_SIZE, 490).astype(np.int32)
    cache = backend.new_bounded_cache(320, CacheLimits(policy="retain"))
    with model.chat(320, policy="retain") as chat:
        found = native_answer(chat, prompt, 60)
        assert found == python_answer(backend, cache, prompt, GREEDY, 60)
        assert chat.stats.position == cache.position < cache.length_tokens


@pytest.mark.parametrize("family", ["llama", "gemma3_text", *WITH_STATES])
def test_budgets_give_the_slots_of_python(both, trained, family):
    model, backend = both(trained(family, 1024), threads=2)
    least = backend.new_bounded_cache(64, CacheLimits(policy="retain")).nbytes
    for budget in (least, least + 20_000, 2 * least, 10**9):
        limits = CacheLimits(policy="retain", budget_bytes=budget)
        with model.chat(policy="retain", budget_bytes=budget) as chat:
            assert chat.stats.slots == backend.new_bounded_cache(512, limits).slots
    with pytest.raises(EdgetokError, match=f"too small, this model needs {least}"):
        model.chat(policy="retain", budget_bytes=least - 1)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.95},
        {"temperature": 1.3, "min_p": 0.02, "repetition_penalty": 1.2},
        {"temperature": 0.8, "top_p": 0.5, "presence_penalty": 0.4, "frequency_penalty": 0.3},
        {"temperature": 0.0, "repetition_penalty": 1.5},
    ],
)
def test_seeds(both, tiny, options):
    model, backend = both(tiny("qwen2", 4).artefact)
    for seed in (0, 3, 2**64 - 1):
        python = SamplingOptions(**{"top_k": 0, "top_p": 1.0} | options, seed=seed)
        with model.chat(64) as chat:
            found = native_answer(chat, PROMPT, 25, seed=seed, **options)
        assert found == python_answer(backend, backend.new_cache(64), PROMPT, python, 25)


def test_prompts_with_the_same_beginning(both, tiny):
    model, backend = both(tiny("mistral", 4).artefact)
    other = np.concatenate([PROMPT[:30], PROMPT[3:9]])
    with model.chat(64) as chat:
        native_answer(chat, PROMPT, 5)
        found = native_answer(chat, other, 20)
        # A window of 8 in a ring of 23 slots still holds what token 30 sees.
        assert chat.stats.cached_tokens == 30
    assert found == python_answer(backend, backend.new_cache(64), other, GREEDY, 20)


def test_truncate_and_context(both, tiny):
    model, backend = both(tiny("llama", 4).artefact)
    with model.chat(64, policy="none") as chat:
        native_answer(chat, PROMPT, 10)
        assert chat.truncate(20) == 20
        with pytest.raises(EdgetokError, match="nothing to continue"):
            list(chat.outputs())
        found = native_answer(chat, PROMPT[:25], 20)
        assert chat.stats.cached_tokens == 20
        chat.sample()
        chat.prefill(PROMPT[:25].tolist())
        tokens, _, why = chat.answer()
        assert why in ("context", "stop")
        assert len(tokens) <= 64 - 25 + 1
        with pytest.raises(EdgetokError, match="65 tokens, the context holds 64"):
            chat.prefill([5] * 65)
        with pytest.raises(EdgetokError, match="token 307, expected 0 to 306"):
            chat.prefill([307])
        with pytest.raises(EdgetokError, match="cannot keep"):
            chat.truncate(1000)
    assert found == python_answer(backend, backend.new_cache(64), PROMPT[:25], GREEDY, 20)


@pytest.mark.parametrize("kv_bits", [4, 5, 8, 16, 32])
@pytest.mark.parametrize("policy", ["none", "content", "retain", "window"])
def test_states_go_over_to_python_and_back(both, trained, policy, kv_bits):
    model, backend = both(trained("gemma3_text", TRAINED), kv_bits)

    def python():
        if policy == "none":
            return backend.new_cache(400)
        return backend.new_bounded_cache(128, CacheLimits(policy=policy))

    prompt = np.random.default_rng(9).integers(3, VOCAB_SIZE, 300).astype(np.int32)
    size = 400 if policy == "none" else 128
    with model.chat(size, policy=policy) as chat, model.chat(size, policy=policy) as second:
        native_answer(chat, prompt, 1)
        block = chat.save()
        cache = python()
        cache.load(CacheState(np.frombuffer(block, np.uint8).copy()))
        assert cache.length_tokens == len(prompt)
        more = np.arange(5, 30, dtype=np.int32)
        whole = np.concatenate([prompt, more])
        found = native_answer(chat, whole, 20)
        assert found == python_answer(backend, cache, more, GREEDY, 20)
        # And back, from a cache that Python filled.
        cache = python()
        backend.forward(cache, prompt)
        second.restore(cache.save().block.tobytes(), prompt.tolist())
        assert native_answer(second, whole, 20) == found
        assert second.stats.cached_tokens == len(prompt)


def test_damaged_states_are_refused(both, trained):
    model, _ = both(trained("gemma3_text", TRAINED))
    rng = np.random.default_rng(0)
    with model.chat(64, policy="retain") as chat:
        native_answer(chat, PROMPT, 1)
        block = bytearray(chat.save())
        head = 24 + 32 * 8 + 600
        for _ in range(400):
            broken = bytearray(block)
            for at in rng.integers(0, head, 1 + rng.integers(4)).tolist():
                broken[at % len(broken)] = int(rng.integers(256))
            try:
                chat.restore(bytes(broken), PROMPT.tolist())
            except EdgetokError:
                continue
            native_answer(chat, PROMPT, 3)  # what was let through runs
        for size in (0, 10, 24, 100, len(block) - 1):
            with pytest.raises(EdgetokError):
                chat.restore(bytes(block[:size]), PROMPT.tolist())
        with pytest.raises(EdgetokError, match="of 37 tokens, not of these 36"):
            chat.restore(bytes(block), PROMPT[:-1].tolist())


def test_cancel_from_another_thread(both, tiny):
    model, _ = both(tiny("llama", 4).artefact)
    with model.chat(64) as chat:
        chat.sample(max_tokens=40)
        chat.prefill(PROMPT[:5].tolist())
        seen = []
        for token, _, _ in chat.outputs():
            seen.append(token)
            if len(seen) == 3:
                stopper = threading.Thread(target=model.calls.edgetok_cancel, args=(chat.handle,))
                stopper.start()
                stopper.join()
        assert len(seen) == 3


@pytest.mark.parametrize("family", ["qwen3", *WITH_STATES])
def test_several_chats_of_one_model(both, tiny, family):
    model, backend = both(tiny(family, 4).artefact, threads=2)
    results = {}

    def talk(i):
        with model.chat(64) as chat:
            results[i] = native_answer(chat, PROMPT[i:], 15)

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, found in results.items():
        assert found == python_answer(backend, backend.new_cache(64), PROMPT[i:], GREEDY, 15)
    assert len(results) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "h2o"}, "cache policy h2o"),
        ({"budget_bytes": 1000, "policy": "none"}, "needs a policy: recall, content"),
        ({"budget_bytes": -1}, "a budget of -1 bytes, expected 0 or more"),
        ({"budget_bytes": 1000}, "too small"),
        ({"context_tokens": 65}, "a context of 65 tokens"),
        ({"context_tokens": 20, "policy": "window"}, "room for 64 tokens"),
    ],
)
def test_caches_that_cannot_be(both, tiny, options, said):
    model, _ = both(tiny("llama", 4).artefact)
    with pytest.raises(EdgetokError, match=said):
        model.chat(**options)
