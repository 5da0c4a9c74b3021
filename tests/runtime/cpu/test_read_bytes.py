"""Bytes that a decoded token reads: weights, keys, values and states."""

from __future__ import annotations

import numpy as np

from edgetok.evaluation.speed import weight_bytes_per_token
from edgetok.formats.artefact import open_artefact
from edgetok.runtime.cpu.backend import CpuBackend


def test_of_experts_those_of_a_token_are_counted(tiny):
    model = tiny("qwen3_moe", 4)
    experts = next(layer.ffn for layer in model.spec.layers if layer.ffn.kind == "experts")
    assert 0 < experts.top < experts.experts
    with open_artefact(model.artefact) as artefact:
        sizes = {name: slot.nbytes for name, slot in artefact.layout.tensors.items()}
        stacked = sum(size for name, size in sizes.items() if ".experts_" in name)
        table = sum(size for name, size in sizes.items() if name.startswith("embed_tokens."))
        unread = stacked // experts.experts * (experts.experts - experts.top)
        assert weight_bytes_per_token(artefact) == sum(sizes.values()) - table - unread


def test_a_hybrid_reads_its_states_however_few_tokens_there_are(tiny, kernel_cache):
    model = tiny("lfm2", 4)
    backend = CpuBackend(model.artefact, threads=1, cache_dir=kernel_cache)
    cache = backend.new_cache(64)
    spec = model.spec
    convolutions = [layer.mixer for layer in spec.layers if layer.mixer.kind == "short_conv"]
    states = sum(4 * spec.hidden_size * (mixer.taps - 1) for mixer in convolutions)
    assert 0 < states == cache.read_bytes
    backend.forward(cache, np.arange(32, dtype=np.int32))
    half = cache.read_bytes - states
    backend.forward(cache, np.arange(32, dtype=np.int32))
    values = sum(2 * heads * dims for heads, dims in map(spec.kv_sizes, spec.attention_layers))
    # Bytes of 64 tokens, with their scales, padding and the numbers of their slots.
    assert 64 * values <= cache.read_bytes - states <= 3 * 64 * values
    assert 2 * half == cache.read_bytes - states
    backend.close()
