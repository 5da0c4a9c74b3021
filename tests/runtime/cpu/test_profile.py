"""The profile of a decode step: every instruction is somewhere, every byte is counted once."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.profile import WAITING, profile_steps


@pytest.mark.parametrize("threads", [1, 2])
def test_profile(tiny, kernel_cache, threads):
    model = tiny("qwen3", 4)
    backend = CpuBackend(model.artefact, threads=threads, cache_dir=kernel_cache)
    cache = backend.new_cache(32)
    tokens = np.arange(20, dtype=np.int32)
    expected = backend.forward(cache, tokens).copy()
    cache.clear()
    backend.forward(cache, tokens[:4])
    begin = time.perf_counter()
    phases = {phase.name: phase for phase in profile_steps(backend, cache, tokens[4:])}
    passed = time.perf_counter() - begin
    layers = model.spec.num_layers
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert phases[name].count == layers
    assert phases["lm_head"].count == 1
    assert phases["rms_norm"].count == 4 * layers + 1
    assert list(phases)[-1] == WAITING
    # Read once: every weight, of an embedding of its own one row; and the cache's filled part.
    weights = sum(p.read_bytes for name, p in phases.items() if not name.startswith("attention"))
    table = 0 if model.spec.tied else backend._plan.weight_bytes("embed_tokens") // 307
    assert abs(weights + table - backend.bytes_per_token) <= table
    assert 0 < phases["attention_8"].read_bytes <= cache.nbytes
    assert all(phase.seconds > 0 for name, phase in phases.items() if name != WAITING)
    assert sum(phase.seconds for phase in phases.values()) * (len(tokens) - 5) < passed
    cache.truncate(len(tokens) - 1)
    np.testing.assert_allclose(backend.forward(cache, tokens[-1:]), expected, rtol=0.1, atol=0.5)
    backend.close()


def test_attention_of_a_hybrid_reads_its_own_bytes(tiny, kernel_cache):
    model = tiny("lfm2", 4)
    backend = CpuBackend(model.artefact, threads=1, cache_dir=kernel_cache)
    cache = backend.new_cache(64)
    phases = {p.name: p for p in profile_steps(backend, cache, np.arange(9, dtype=np.int32))}
    spec = model.spec
    attending = len(spec.attention_layers)
    assert 0 < attending == phases["attention_8"].count < spec.num_layers
    # A byte a value, and less than as much again of scales; states of other layers are none of it.
    values = sum(2 * kv_heads * dim for kv_heads, dim in map(spec.kv_sizes, spec.attention_layers))
    assert 9 * values <= phases["attention_8"].read_bytes <= 2 * 9 * values
    backend.close()
