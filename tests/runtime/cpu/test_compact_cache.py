"""A bounded cache in the decoder, against NumPy that attends to what the cache says it holds."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest

from edgetok.cache import bounds
from edgetok.cache.bounds import bounds_for
from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.slot_memory import REST_TOKENS
from edgetok.cache.table import EMPTY
from edgetok.errors import OptionError, SessionError
from edgetok.formats.layout import TensorFormat
from edgetok.formats.manifest import write_manifest
from edgetok.kernels_cpu import reference
from edgetok.models import inv_freq
from edgetok.runtime.backend import Interrupted
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.cache_memory import cache_bytes
from tests import reference_decoder
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import FAMILIES

TOKENS = np.random.default_rng(5).integers(3, 307, 400).astype(np.int32)


@pytest.fixture
def load(tiny, kernel_cache):
    """A backend that computes in float32, with a float32 cache."""
    opened = []

    def load(family, threads=1, **options):
        options = {"kv_bits": 32, "compute": "float32"} | options
        made = tiny(family, 16)
        backend = CpuBackend(made.artefact, threads=threads, cache_dir=kernel_cache, **options)
        opened.append(backend)
        return backend, made

    yield load
    for backend in opened:
        backend.close()


def held(cache, layer, head):
    """(tokens, positions) of a layer's head, read through its record."""
    group = next(group for group, _ in cache.evicting if (layer, head) in group.heads)
    table, row = group.table, group.heads.index((layer, head))
    at = table.slots(row)
    return table.tokens[row, at], table.positions[row, at]


def heads(cache):
    """Those that see every token."""
    return [head for group, _ in cache.evicting for head in group.heads]


class Watch:
    """Notes what a cache holds in each run; full layers only."""

    def __init__(self, cache):
        self.cache, self.runs = cache, []
        # Of each head its evicted tokens, and where they would be now: what its rest stands for.
        self.gone = {key: ([], []) for key in heads(cache) if cache.bounds.apart}
        begin = cache.begin

        def noting(tokens):
            before, ahead = {key: held(cache, *key) for key in self.gone}, cache.position
            first = begin(tokens)
            places = {key: held(cache, *key) for key in heads(cache)}
            for key, gone in self.gone.items():
                lost = ~np.isin(before[key][0], places[key][0])
                old = [np.concatenate(pair) for pair in zip(gone, before[key], strict=True)]
                lost = np.concatenate([np.ones(len(gone[0]), bool), lost])
                self.gone[key] = old[0][lost].astype(int), old[1][lost].astype(int) - ahead + first
                assert len(self.gone[key][0]) <= REST_TOKENS  # a plain mean up to there
            self.runs.append((cache.length_tokens, tokens, first, places, dict(self.gone)))
            return first

        cache.begin = noting

    def attend(self, spec, capacity, weights):
        """Attention to exactly what was held, at the positions that it then had."""
        frequencies = [inv_freq(rope, capacity) for rope in spec.ropes]

        def turned(layer, x, positions):
            rope = spec.layers[layer].rope
            if rope < 0:
                return x
            return reference.rope(
                x, positions, frequencies[rope], spec.ropes[rope].attention_factor
            )

        def attend(layer, q, k, v):
            out = np.zeros_like(q)
            kv_heads, _ = spec.kv_sizes(layer)
            group = spec.num_heads // kv_heads
            sinks = weights.get(f"layers.{layer}.sinks.weight")
            behind = np.ones(q.shape[-1])  # what queries are multiplied by after their rotation
            if spec.layers[layer].mixer.normed_behind_rope:
                for which in "qk":
                    behind = behind * weights[f"layers.{layer}.{which}_norm.weight"]
            q = q / behind
            for start, count, first, places, gone in self.runs:
                rows = np.arange(start, start + count)
                where = np.arange(first, first + count)
                for head in range(kv_heads):
                    if spec.layers[layer].window:
                        tokens = np.arange(start + count)
                        positions = tokens - start + first
                    else:
                        tokens, positions = places[layer, head]
                    queries = q[rows][:, head * group : (head + 1) * group]
                    queries = turned(layer, queries, where) * behind
                    keys = turned(layer, k[tokens][:, head : head + 1], positions)[:, 0]
                    seen = positions[None] <= where[:, None]
                    if window := spec.layers[layer].window:
                        seen &= positions[None] > where[:, None] - window
                    for g in range(group):
                        scores = queries[:, g] @ keys.T * spec.attn_scale
                        scores = reference.softcap(scores, spec.attn_softcap)
                        scores = np.where(seen, scores, -np.inf)
                        values = v[tokens, head]
                        if len(gone.get((layer, head), [()])[0]):
                            which, at = gone[layer, head]
                            mean = turned(layer, k[which][:, head : head + 1], at).mean(axis=0)
                            more = queries[:, g] @ mean.T * spec.attn_scale
                            more = reference.softcap(more, spec.attn_softcap) + np.log(len(which))
                            scores = np.concatenate([scores, more], 1)
                            values = np.concatenate([values, v[which, head].mean(axis=0)[None]])
                        if sinks is not None:
                            own = np.full((len(scores), 1), sinks[head * group + g])
                            scores = np.concatenate([scores, own], 1)
                        p = reference.softmax(scores)[:, : len(values)]
                        out[rows, head * group + g] = p @ values
            return out

        return attend


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_what_is_held(load, family):
    """Trained for 64 tokens, given 230: every rope is turned back several times."""
    backend, made = load(family)
    cache = backend.new_bounded_cache(64, CacheLimits(policy="retain"))
    watch = Watch(cache)
    got = [backend.forward(cache, TOKENS[:150], all_logits=True)]
    got += [backend.forward(cache, TOKENS[i : i + 1])[None].copy() for i in range(150, 230)]
    spec = made.spec
    expected = reference_decoder.forward(
        spec,
        made.weights,
        TOKENS[:230],
        attend=watch.attend(spec, spec.context_tokens, made.weights),
    )
    assert cache.position <= 64 < cache.length_tokens
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_computes_right(load, policy):
    backend, made = load("gemma3_text")
    cache = backend.new_bounded_cache(64, CacheLimits(policy=policy))
    watch = Watch(cache)
    got = backend.forward(cache, TOKENS[:200], all_logits=True)
    spec = made.spec
    expected = reference_decoder.forward(
        spec,
        made.weights,
        TOKENS[:200],
        attend=watch.attend(spec, spec.context_tokens, made.weights),
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-4)
    tokens, _ = held(cache, 2, 0)
    latest = range(200 - cache.bounds.recent, 200)
    assert set(range(cache.bounds.sinks)) | set(latest) <= set(tokens.tolist())


@pytest.mark.parametrize("kv_bits", [32, 8])
def test_heads_with_unequal_slots(tiny, tmp_path, kernel_cache, monkeypatch, kv_bits):
    """The head that the card says looks for things has more slots; renumbered in between."""
    monkeypatch.setattr(bounds, "FEWEST_HEADS", 2)
    spec = replace(tiny("llama", 16).spec, context_tokens=320)
    weights = write_artefact(
        tmp_path, spec, random_tensors(spec), uniform_formats(spec, TensorFormat(16, 32))
    )
    scores = [[0.0] * spec.num_kv_heads for _ in range(spec.num_layers)]
    scores[1][1] = 0.7
    (tmp_path / "report.json").write_text(json.dumps({"heads": {"recall": scores}}))
    write_manifest(tmp_path)
    options = {"kv_bits": kv_bits, "compute": "float32", "cache_dir": kernel_cache}
    with contextlib.closing(CpuBackend(tmp_path, threads=2, **options)) as backend:
        uniform = backend.new_bounded_cache(128, CacheLimits(policy="content"))
        cache = backend.new_bounded_cache(128, CacheLimits(policy="recall"))
        narrow, wide = (group for group, _ in cache.evicting)
        assert wide.heads == [(1, 1)]
        assert (narrow.table.limit, wide.table.limit) == (64, 320)
        slots = sum(len(group.heads) * group.table.limit for group in (narrow, wide))
        assert slots <= len(heads(cache)) * 128
        watch = Watch(cache)
        got = [backend.forward(cache, TOKENS[:350], all_logits=True)]
        fork = cache.fork()
        for i in range(350, 400):
            got.append(backend.forward(cache, TOKENS[i : i + 1])[None].copy())
        again = [backend.forward(fork, TOKENS[i : i + 1])[None].copy() for i in range(350, 400)]
        np.testing.assert_array_equal(np.concatenate(again), np.concatenate(got[1:]))
        assert cache.position <= 320 < cache.length_tokens
        assert len(held(cache, 1, 1)[0]) > 3 * len(held(cache, 1, 0)[0])
        assert len(held(cache, 0, 0)[0]) <= 64
        kept = cache.kept()
        assert kept.sum() == pytest.approx(cache.retained)
        assert 0.0 < cache.loss < 1.0
        saved, other = fork.save(), backend.new_bounded_cache(128, CacheLimits(policy="recall"))
        other.load(saved)
        assert other.loss == pytest.approx(fork.loss)
        np.testing.assert_array_equal(
            backend.forward(other, TOKENS[:5]).copy(), backend.forward(fork, TOKENS[:5])
        )
        with pytest.raises(SessionError, match="policy"):
            uniform.load(saved)
        expected = reference_decoder.forward(
            spec, weights, TOKENS, attend=watch.attend(spec, spec.context_tokens, weights)
        )
    error = np.abs(np.concatenate(got) - expected).max() / np.abs(expected).max()
    assert error < (1e-4 if kv_bits == 32 else 0.02)


def test_forgets_nothing_while_there_is_room(load):
    backend, _ = load("llama")
    full = backend.forward(backend.new_cache(60), TOKENS[:56], all_logits=True)
    cache = backend.new_bounded_cache(64, CacheLimits())
    bounded = backend.forward(cache, TOKENS[:56], all_logits=True)
    np.testing.assert_allclose(bounded, full, rtol=0, atol=1e-4)  # blocks are of another size
    assert cache.loss == 0.0


def test_bytes_never_change_and_fit_the_budget(load):
    backend, made = load("gemma2", kv_bits=8)
    smallest = cache_bytes(
        made.spec,
        bounds_for(made.spec, CacheLimits(), 64, block_tokens=256, bytes_of=lambda _: 0),
        8,
        1,
    )
    cache = backend.new_bounded_cache(64, CacheLimits(budget_bytes=smallest))
    assert cache.nbytes <= smallest
    backend.forward(cache, TOKENS)
    pages = [page.address for group in cache.memory.groups for page in group._pages.pages]
    backend.forward(cache, TOKENS)
    for token in TOKENS[:40]:
        backend.forward(cache, np.array([token]))
    assert cache.nbytes <= smallest
    assert backend.store.pool.used_bytes <= cache.held_bytes <= smallest
    assert pages == [page.address for group in cache.memory.groups for page in group._pages.pages]
    with pytest.raises(OptionError, match="give a larger --kv-budget"):
        backend.new_bounded_cache(64, CacheLimits(budget_bytes=smallest - 1))


def test_threads_give_the_same(load):
    one, _ = load("llama", threads=1, kv_bits=8)
    two, _ = load("llama", threads=2, kv_bits=8)
    logits = []
    for backend in (one, two):
        cache = backend.new_bounded_cache(64, CacheLimits())
        logits.append(backend.forward(cache, TOKENS, all_logits=True))
    np.testing.assert_array_equal(*logits)


def test_a_branch_goes_its_own_way(load):
    """A saved cache can be loaded again, or elsewhere, and goes on as if nothing had happened."""
    backend, _ = load("gemma2", kv_bits=8)
    cache = backend.new_bounded_cache(64, CacheLimits())
    backend.forward(cache, TOKENS[:170])
    state = cache.save()
    first = backend.forward(cache, TOKENS[170:300], all_logits=True)
    backend.forward(cache, TOKENS[:90])
    cache.load(state)
    other = backend.new_bounded_cache(64, CacheLimits())
    other.load(state)
    for branch in (cache, other):
        again = backend.forward(branch, TOKENS[170:300], all_logits=True)
        np.testing.assert_array_equal(again, first)


def test_a_stopped_prefill_is_usable(load):
    backend, _ = load("llama")
    cache, asked = backend.new_bounded_cache(64, CacheLimits()), []

    def stop():
        asked.append(cache.length_tokens)
        return len(asked) == 20

    with pytest.raises(Interrupted):
        backend.forward(cache, TOKENS, should_stop=stop)
    assert cache.length_tokens == 20 * cache.block_tokens
    other = backend.new_bounded_cache(64, CacheLimits())
    backend.forward(other, TOKENS[: 20 * cache.block_tokens])
    np.testing.assert_array_equal(
        backend.forward(cache, TOKENS[:3]), backend.forward(other, TOKENS[:3])
    )


def test_truncate_only_where_nothing_was_given_up_for_it(load):
    backend, _ = load("llama")
    cache = backend.new_bounded_cache(64, CacheLimits(policy="window"))
    backend.forward(cache, TOKENS[:200])
    assert not cache.truncate(100)
    assert cache.length_tokens == 200
    keep = 200 - cache.bounds.recent // 2
    before = {key: held(cache, *key)[0] for key in heads(cache)}
    assert cache.truncate(keep)
    for key, tokens in before.items():
        assert sorted(held(cache, *key)[0]) == sorted(tokens[tokens < keep])
    logits = backend.forward(cache, TOKENS[keep:200])
    assert np.isfinite(logits).all()
    assert cache.length_tokens == 200
    assert cache.truncate(0)
    assert cache.length_tokens == cache.position == 0
    assert (cache.chosen.table.positions == EMPTY).all()


def test_limits_out_of_range(load):
    backend, _ = load("llama")
    with pytest.raises(OptionError, match="cache policy 'lru'"):
        backend.new_bounded_cache(64, CacheLimits(policy="lru"))
