"""Random lives of sequences that share steps, against each sequence alone.

A schedule appends chunks of several sequences in steps of one to four parts, asks for logits of
some rows, drafts and takes some of the draft back, cuts sequences back, answers again, and copies
caches, as bytes or by shared pages.
Whatever happened, the logits of a token are those of the tokens before it, bit for bit: where
nothing is evicted, those of a fresh cache that was given one token after the other; where a policy
evicts, those of the same chunks and cuts with nobody else in a step.
"""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import POLICIES
from edgetok.errors import ContextError, OptionError, ShapeError
from edgetok.kernels_cpu.attention.launch import KV_BITS
from edgetok.runtime.backend import Part
from edgetok.runtime.cpu.backend import CpuBackend
from tests.tiny import VOCAB_SIZE

STEPS = 45
SEQUENCES = 4
LONGEST = 110  # tokens: bounded caches of 64 slots evict, windows of 8 tokens go around their ring


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


class Alone:
    """Logits of every beginning of a text, from a fresh cache, one token after the other."""

    def __init__(self, backend):
        self.backend = backend
        self.known = {}
        self.text = ()
        self.cache = None

    def after(self, tokens):
        key = tuple(tokens)
        if key not in self.known:
            if self.cache is None or key[: len(self.text)] != self.text:
                self.text, self.cache = (), self.backend.new_cache(LONGEST)
            for token in key[len(self.text) :]:
                (found,) = self.backend.step([Part(self.cache, np.array([token], np.int32), 1)])
                self.text += (token,)
                self.known[self.text] = found.tobytes()
        return self.known[key]


class Sequence:
    """A cache, the tokens that it stands for, and everything that was done to it."""

    def __init__(self, cache):
        self.cache = cache
        self.tokens = []
        self.done = []  # (tokens, logits wanted, what came) or the length after a cut
        self.drafted = 0

    def cut(self, wanted):
        """Go back to a length, or as near as the cache can; whether it is that length."""
        length = wanted
        if not self.cache.truncate(wanted):  # what the next token sees was overwritten or evicted
            length = self.cache.reachable(wanted)
            assert length < wanted
            assert self.cache.truncate(length)
        del self.tokens[length:]
        self.done.append(length)
        return length == wanted

    def copy_to(self, other, by_pages):
        if by_pages:
            other.cache.adopt(self.cache)
        else:
            other.cache.load(self.cache.save())
        other.tokens, other.done = list(self.tokens), list(self.done)


def run_schedule(backend, make_cache, seed):
    """One schedule; its sequences."""
    rng = np.random.default_rng(seed)
    sequences = [Sequence(make_cache(i)) for i in range(SEQUENCES)]
    for _ in range(STEPS):
        one = sequences[rng.integers(SEQUENCES)]
        what = rng.random()
        if what < 0.1 and one.tokens:
            one.cut(int(rng.integers(max(0, len(one.tokens) - 12), len(one.tokens) + 1)))
        elif what < 0.16 and one.done and isinstance(one.done[-1], tuple):  # answer again
            ids, wanted, found = one.done[-1]
            if len(ids) < len(one.tokens) and one.cut(len(one.tokens) - len(ids)):
                append(backend, [(one, ids, wanted)])
                assert one.done[-1][2] == found
        elif what < 0.22:
            other = sequences[rng.integers(SEQUENCES)]
            if other is not one and one.cache.shape == other.cache.shape:
                one.copy_to(other, by_pages=rng.random() < 0.5)
        else:
            chosen, left = [], backend.capabilities.step_rows
            for i in rng.permutation(SEQUENCES)[: rng.integers(1, SEQUENCES + 1)]:
                sequence = sequences[i]
                most = min(left, sequence.cache.block_tokens, LONGEST - len(sequence.tokens))
                if most < 1:
                    continue
                count = int(rng.integers(1, most + 1)) if rng.random() < 0.5 else 1
                if rng.random() < 0.3 and (most := min(most, sequence.cache.draft_tokens)) > 1:
                    count = int(rng.integers(2, most + 1))
                    left -= count
                    ids = rng.integers(3, VOCAB_SIZE, count).astype(np.int32)
                    chosen.append((sequence, ids, -int(rng.integers(1, count + 1))))
                    continue
                left -= count
                ids = rng.integers(3, VOCAB_SIZE, count).astype(np.int32)
                chosen.append((sequence, ids, int(rng.integers(0, count + 1))))
            append(backend, chosen)
    return sequences


def append(backend, chosen):
    """A step; less than no logits wanted: a draft, of which so many rows are kept."""
    found = backend.step(
        [Part(one.cache, ids, wanted if wanted >= 0 else len(ids)) for one, ids, wanted in chosen]
    )
    for (one, ids, wanted), logits in zip(chosen, found, strict=True):
        if wanted < 0:
            if len(ids) > -wanted:
                one.cache.retract(len(ids) + wanted)
            one.tokens += ids[:-wanted].tolist()
            one.done += [(ids[i : i + 1], 1, logits[i].tobytes()) for i in range(-wanted)]
            one.drafted += len(ids)
            assert one.cache.length_tokens == len(one.tokens)
            continue
        assert logits.shape == (wanted, VOCAB_SIZE)
        assert logits.dtype == np.float32
        one.tokens += ids.tolist()
        assert one.cache.length_tokens == len(one.tokens)
        one.done.append((ids, wanted, logits.tobytes()))


def check_against_each_token_alone(sequence, alone):
    tokens = []
    for event in sequence.done:
        if not isinstance(event, tuple):
            del tokens[event:]
            continue
        ids, wanted, found = event
        tokens += ids.tolist()
        ends = range(len(tokens) - wanted + 1, len(tokens) + 1)
        assert found == b"".join(alone.after(tokens[:end]) for end in ends), len(tokens)


def check_against_the_same_chunks_alone(sequence, backend, cache):
    for event in sequence.done:
        if isinstance(event, tuple):
            ids, wanted, expected = event
            (found,) = backend.step([Part(cache, ids, wanted)])
            assert found.tobytes() == expected, cache.length_tokens
        elif not cache.truncate(event):
            assert event == 0
            cache.clear()


@pytest.mark.parametrize(
    "family", ["llama", "gemma3_text", "gemma2", "lfm2", "qwen3_next", "granitemoehybrid"]
)
@pytest.mark.parametrize("kv_bits", KV_BITS)
def test_nobody_knows_what_company_it_had(family, kv_bits, tiny, open_backend):
    backend = open_backend(tiny(family, 4).artefact, kv_bits=kv_bits)
    alone = Alone(backend)
    capacities, drafted = (LONGEST, 128, 300, 5000), 0
    for seed in range(10):
        sequences = run_schedule(backend, lambda i: backend.new_cache(capacities[i]), seed)
        for sequence in sequences:
            check_against_each_token_alone(sequence, alone)
            drafted += sequence.drafted
    assert drafted > 400


@pytest.mark.parametrize("kv_bits", [8, 32])
def test_float_products(kv_bits, tiny, open_backend):
    backend = open_backend(tiny("gemma3_text", 4).artefact, kv_bits=kv_bits, compute="float32")
    alone = Alone(backend)
    for seed in range(4):
        sequences = run_schedule(backend, lambda _: backend.new_cache(128), seed)
        for sequence in sequences:
            check_against_each_token_alone(sequence, alone)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("kv_bits", KV_BITS)
def test_evicting_caches_with_the_same_chunks(policy, kv_bits, tiny, open_backend):
    family = "gemma3_text" if kv_bits in (4, 32) else "llama"
    backend = open_backend(tiny(family, 4).artefact, kv_bits=kv_bits, block_tokens=32)
    evicted = drafted = 0
    for seed in range(4):

        def make(i):
            if i == 3:  # one that does not evict is in the same steps
                return backend.new_cache(LONGEST)
            return backend.new_bounded_cache(64, CacheLimits(policy=policy))

        for i, sequence in enumerate(run_schedule(backend, make, seed)):
            check_against_the_same_chunks_alone(sequence, backend, make(i))
            evicted += i < 3 and sequence.cache.retained < sequence.cache.length_tokens
            drafted += i < 3 and sequence.drafted
    assert evicted
    assert (drafted > 0) == (not POLICIES[policy].remembers)


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
