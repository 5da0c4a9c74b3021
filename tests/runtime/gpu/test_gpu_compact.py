"""The cache that forgets on a GPU against the CPU's: the same tokens, positions and logits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

from edgetok.cache.limits import CacheLimits
from edgetok.kernels_gpu.device import Device
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.gpu.backend import GpuBackend
from tests.tiny import VOCAB_SIZE

pytestmark = pytest.mark.gpu
TOKENS = np.random.default_rng(5).integers(3, VOCAB_SIZE, 120).astype(np.int32)
# Float16 keys, values, queries and probabilities: 5e-4 each.
FLOAT16_SHARE = 8e-3


@pytest.fixture
def pair(tiny, kernel_cache, on_card):
    """A model on both."""
    opened = []

    def pair(family, kv_bits=16):
        model, options = tiny(family, 16), {"kv_bits": kv_bits, "compute": "float32"}
        cpu = CpuBackend(model.artefact, threads=1, cache_dir=kernel_cache, **options)
        device = None if on_card else Device(interpreted=True)
        gpu = GpuBackend(model.artefact, device=device, **options)
        opened.extend((cpu, gpu))
        return cpu, gpu

    yield pair
    for backend in opened:
        backend.close()


def held(cache):
    """Return each head's tokens and their positions, in the order of tokens."""
    table, found = cache.chosen.table, []
    for row in range(table.rows):
        at = table.slots(row)
        at = at[np.argsort(table.tokens[row, at])]
        found.append((table.tokens[row, at].tolist(), table.positions[row, at].tolist()))
    return found


def share(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("family", "policy"), [("llama", "retain"), ("gemma3_text", "expected-attention")]
)
def test_keeps_what_the_cpu_keeps(pair, family, policy):
    """Trained for 64 tokens: keys are turned back too, those of windows as well."""
    cpu, gpu = pair(family)
    assert gpu.capabilities.evicts
    limits = CacheLimits(policy=policy)
    ours, theirs = gpu.new_bounded_cache(64, limits), cpu.new_bounded_cache(64, limits)
    assert ours.capabilities.evicts
    for part in (TOKENS[:75], *TOKENS[75:79, None]):
        mine, other = gpu.forward(ours, part), cpu.forward(theirs, part)
        assert share(mine, other) < FLOAT16_SHARE
    assert held(ours) == held(theirs)
    assert ours.position == theirs.position < ours.length_tokens
    mine, other = ours.memory.groups[0], theirs.memory.groups[0]
    positions = mine._positions.cpu().numpy().reshape(ours.chosen.table.positions.shape)
    np.testing.assert_array_equal(positions, ours.chosen.table.positions)
    assert ours.loss == pytest.approx(theirs.loss, abs=2e-3)
    np.testing.assert_allclose(mine.mass, other.mass, atol=0.05)


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("policy", [None, "tova"])
def test_saved_and_forked_caches_go_on_alike(pair, kv_bits, policy):
    """A state block and a fork give the same logits as the cache itself, on a GPU as well."""
    _, gpu = pair("gemma3_text", kv_bits)
    caches = [
        gpu.new_cache(120) if policy is None
        else gpu.new_bounded_cache(64, CacheLimits(policy=policy))
        for _ in range(2)
    ]  # fmt: skip
    gpu.forward(caches[0], TOKENS[:70])
    caches[1].load(caches[0].save())
    caches.append(caches[0].fork())
    for part in (TOKENS[70:75], TOKENS[75:76]):
        first, *others = (gpu.forward(cache, part).copy() for cache in caches)
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_slots_of_four_bits_forget(pair, tiny, kernel_cache):
    """Codes on the border go either way: as near to a cache that rounds nothing as the CPU's is."""
    cpu, gpu = pair("llama", 4)
    exact = CpuBackend(
        tiny("llama", 16).artefact,
        threads=1, cache_dir=kernel_cache, kv_bits=32, compute="float32",
    )  # fmt: skip
    limits = CacheLimits(policy="window")
    caches = [backend.new_bounded_cache(64, limits) for backend in (gpu, cpu, exact)]
    for part in (TOKENS[:66], TOKENS[66:67]):
        ours, theirs, true = (
            backend.forward(cache, part)
            for backend, cache in zip((gpu, cpu, exact), caches, strict=True)
        )
        assert share(ours, true) < 1.2 * share(theirs, true)
    assert held(caches[0]) == held(caches[1])
    assert caches[0].position < caches[0].length_tokens
    exact.close()
