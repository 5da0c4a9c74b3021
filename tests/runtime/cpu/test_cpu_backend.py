"""The CPU backend against transformers, the NumPy decoder and onnxruntime, on every family."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetok.cache.protocol import KVCache
from edgetok.errors import (
    ArtefactError,
    ContextError,
    EdgetokError,
    OptionError,
    ShapeError,
    UnsupportedError,
)
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import DATA_FILE, TensorFormat
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.runtime.backend import Backend, Interrupted
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from tests.reference_decoder import forward
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import FAMILIES, VOCAB_SIZE, load_reference

TOKENS = np.random.default_rng(7).integers(3, VOCAB_SIZE, 40).astype(np.int32)
# float32 sums in another order: logits reach 35, a few hundred roundings of 6e-8 each.
SAME = {"rtol": 1e-4, "atol": 1e-4}
# Each int8 product rounds its inputs to 0.5 % of their norm; twenty one after the other in a model
# this narrow, and an int8 cache, add up to some percent.
INT8_SHARE = 0.06


@pytest.fixture
def open_backend(kernel_cache):
    opened = []

    def make(folder, **options):
        options = {"threads": 1, "block_tokens": 16, "cache_dir": kernel_cache} | options
        opened.append(CpuBackend(folder, **options))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


def exact(open_backend, tiny_model, **options):
    return open_backend(tiny_model.artefact, compute="float32", kv_bits=32, **options)


def whole(backend, tokens=TOKENS, capacity=None):
    return backend.forward(backend.new_cache(capacity or len(tokens)), tokens, all_logits=True)


def step_by_step(backend, tokens=TOKENS, capacity=None):
    cache = backend.new_cache(capacity or len(tokens))
    return np.stack([backend.forward(cache, tokens[i : i + 1]).copy() for i in range(len(tokens))])


def greedy(backend, prompt, count, capacity=256):
    cache = backend.new_cache(capacity)
    logits, out = backend.forward(cache, prompt), []
    for _ in range(count):
        out.append(int(np.argmax(logits)))
        logits = backend.forward(cache, np.array(out[-1:], np.int32))
    return out


def share(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_not_quantised_equals_transformers(family, tiny, open_backend):
    model = tiny(family, 16)
    backend = exact(open_backend, model, threads=2)
    if family == "phi3":  # transformers takes the long factors from 17 tokens on, as we do
        assert backend.spec.ropes[0].original_context_tokens < len(TOKENS)
    with torch.no_grad():
        expected = load_reference(model.checkpoint)(torch.tensor(TOKENS[None])).logits[0].numpy()
    np.testing.assert_allclose(whole(backend), expected, **SAME)
    np.testing.assert_allclose(step_by_step(backend), expected, **SAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_equals_the_weights_that_it_stands_for(family, tiny, open_backend):
    model = tiny(family, 8)
    expected = forward(model.spec, model.weights, TOKENS)
    np.testing.assert_allclose(whole(exact(open_backend, model)), expected, **SAME)
    int8 = open_backend(model.artefact)
    assert share(whole(int8), expected) < INT8_SHARE
    assert share(step_by_step(int8), expected) < INT8_SHARE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kv_bits", [4, 5, 32])
def test_a_prompt_skips_what_only_its_last_token_needs(family, kv_bits, tiny, open_backend):
    """Behind the last layer's keys and values; what all tokens leave in the cache is the same."""
    backend = open_backend(tiny(family, 16).artefact, kv_bits=kv_bits, threads=2, block_tokens=7)
    expected = whole(backend)
    cache, size = backend.new_cache(len(TOKENS)), len(TOKENS) - 2
    for part in (TOKENS[:size], TOKENS[size:]):
        found = backend.forward(cache, part)
        last = expected[cache.length_tokens - 1]
        if kv_bits == 32:
            np.testing.assert_allclose(found, last, **SAME)
        assert share(found, last) < 1e-3  # a rounding may move a 4-bit code


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_few_bits(bits, tiny, open_backend):
    model = tiny("llama", bits)
    expected = forward(model.spec, model.weights, TOKENS)
    np.testing.assert_allclose(whole(exact(open_backend, model)), expected, **SAME)
    assert share(whole(open_backend(model.artefact)), expected) < INT8_SHARE


@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_agrees(family, tiny, open_backend):
    model = tiny(family, 16)
    theirs = OnnxRuntimeBackend(model.artefact, threads=1)
    stretched = any(rope.scaling == "longrope" for rope in model.spec.ropes)
    tokens = TOKENS[:16] if stretched else TOKENS
    expected = theirs.forward(theirs.new_cache(len(tokens)), tokens, all_logits=True)
    theirs.close()
    np.testing.assert_allclose(whole(exact(open_backend, model), tokens), expected, **SAME)


def test_both_branches_of_longrope(tiny, open_backend):
    model = tiny("phi3", 16)
    backend = exact(open_backend, model)
    for capacity in (16, 17):
        expected = forward(model.spec, model.weights, TOKENS[:12], capacity_tokens=capacity)
        np.testing.assert_allclose(whole(backend, TOKENS[:12], capacity), expected, **SAME)
    short, long = (whole(backend, TOKENS[:12], c) for c in (16, 17))
    assert np.abs(short - long).max() > 1e-3


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("kv_bits", [5, 8, 16, 32])
def test_every_instruction_set(isa, kv_bits, tiny, open_backend):
    model = tiny("gemma2", 4)
    backend = open_backend(model.artefact, isa=isa, kv_bits=kv_bits, threads=2)
    assert backend.isa == isa
    expected = forward(model.spec, model.weights, TOKENS)
    assert share(whole(backend), expected) < INT8_SHARE
    assert share(step_by_step(backend), expected) < INT8_SHARE


@pytest.mark.parametrize("block_tokens", [1, 3, 7, 16, 64])
def test_windows_longer_than_the_ring(block_tokens, tiny, open_backend):
    """Windows of 8 tokens, 300 tokens: the ring (64 slots or more) wraps around several times."""
    model = tiny("gemma3_text", 16)
    tokens = np.random.default_rng(3).integers(3, VOCAB_SIZE, 300).astype(np.int32)
    expected = forward(model.spec, model.weights, tokens)
    backend = exact(open_backend, model, block_tokens=block_tokens, threads=2)
    np.testing.assert_allclose(whole(backend, tokens), expected, **SAME)
    cache = backend.new_cache(300)
    assert cache.nbytes < backend.new_cache(10_000).nbytes
    for a, b in ((0, 250), (250, 251), (251, 255), (255, 300)):
        last = backend.forward(cache, tokens[a:b])
        np.testing.assert_allclose(last, expected[b - 1], **SAME)


def test_a_tied_head_and_scales_are_in_place(tiny, open_backend):
    model = tiny("granite", 8)
    backend = exact(open_backend, model)
    anonymous = backend.buffer_bytes
    assert backend.bytes_per_token < os.path.getsize(model.artefact / DATA_FILE)
    assert anonymous < 4 << 20


@pytest.mark.parametrize("bits", [4, 16])
def test_threads_do_not_change_the_bits(bits, tiny, open_backend):
    model = tiny("qwen3", bits)
    one, two, four = (open_backend(model.artefact, threads=n) for n in (1, 2, 4))
    np.testing.assert_array_equal(whole(one), whole(two))
    np.testing.assert_array_equal(whole(one), whole(four))
    prompt = TOKENS[:9]
    expected = greedy(one, prompt, 100)
    assert greedy(two, prompt, 100) == expected
    assert greedy(four, prompt, 100) == expected


def test_many_callers_get_the_tokens_of_one(tiny, open_backend):
    backend = open_backend(tiny("llama", 4).artefact, threads=2)
    prompts = [np.roll(TOKENS, i)[: 5 + i] for i in range(32)]
    expected = [greedy(backend, prompt, 12) for prompt in prompts]
    found: list[list[int] | None] = [None] * 32

    def call(i):
        found[i] = greedy(backend, prompts[i], 12)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(32)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == expected


def test_cancelled_in_the_middle_of_a_prefill(tiny, open_backend):
    model = tiny("gemma2", 16)
    backend = exact(open_backend, model, block_tokens=8)
    expected = whole(backend)
    cache, asked = backend.new_cache(64), []

    def stop():
        asked.append(cache.length_tokens)
        return len(asked) == 2

    with pytest.raises(Interrupted):
        backend.forward(cache, TOKENS, should_stop=stop)
    assert asked == [8, 16]
    assert cache.length_tokens == 16
    last = backend.forward(cache, TOKENS[16:], should_stop=lambda: False)
    np.testing.assert_allclose(last, expected[-1], **SAME)


def test_truncate_and_go_on(tiny, open_backend):
    model = tiny("qwen3", 16)
    backend = exact(open_backend, model)
    expected = whole(backend)
    cache = backend.new_cache(64)
    backend.forward(cache, TOKENS[::-1].copy())
    backend.forward(cache, TOKENS[:5])
    assert cache.truncate(0)
    backend.forward(cache, TOKENS[:30])
    backend.forward(cache, TOKENS[:3])
    assert cache.truncate(30)
    np.testing.assert_allclose(backend.forward(cache, TOKENS[30:]), expected[-1], **SAME)


def test_bad_calls(tiny, open_backend, kernel_cache):
    model = tiny("llama", 8)
    backend = open_backend(model.artefact)
    cache = backend.new_cache(10)
    assert isinstance(cache.nbytes, int)
    with pytest.raises(ContextError, match=r"11 tokens do not fit into a context of 10"):
        backend.forward(cache, TOKENS[:11])
    for bad in (-1, VOCAB_SIZE):
        with pytest.raises(OptionError, match=f"expected 0..{VOCAB_SIZE - 1}"):
            backend.forward(cache, np.array([1, bad], np.int32))
    for bad in (np.zeros(0, np.int32), np.zeros((1, 2), np.int32), np.zeros(2, np.float32)):
        with pytest.raises(ShapeError, match="expected integers"):
            backend.forward(cache, bad)
    other = open_backend(model.artefact, kv_bits=16)
    with pytest.raises(ShapeError, match="not a cache of this backend"):
        other.forward(cache, TOKENS[:1])
    assert cache.length_tokens == 0
    for options in ({"threads": 0}, {"kv_bits": 6}, {"compute": "int4"}, {"block_tokens": 0}):
        (name,) = options
        with pytest.raises(OptionError, match=name):
            CpuBackend(model.artefact, cache_dir=kernel_cache, **options)
    with pytest.raises(OptionError, match="sse9"):
        CpuBackend(model.artefact, cache_dir=kernel_cache, isa="sse9")


def test_close_twice_and_use_afterwards(tiny, open_backend):
    backend = open_backend(tiny("llama", 8).artefact, threads=2)
    cache = backend.new_cache(10)
    backend.forward(cache, TOKENS[:3])
    before = {t.name for t in threading.enumerate()}
    assert "edgetok-1" in before
    backend.close()
    backend.close()
    assert not any(t.name == "edgetok-1" for t in threading.enumerate())
    with pytest.raises(EdgetokError, match="was closed"):
        backend.forward(cache, TOKENS[:1])


def test_weights_changed_under_way(tmp_path, tiny, open_backend):
    spec = tiny("llama", 8).spec
    write_artefact(tmp_path, spec, random_tensors(spec), uniform_formats(spec, tiny_format(8)))
    backend = open_backend(tmp_path)
    cache = backend.new_cache(10)
    backend.forward(cache, TOKENS[:2])
    data, aside = tmp_path / DATA_FILE, tmp_path / "aside"
    before = backend.forward(cache, TOKENS[2:3]).copy()
    aside.write_bytes(data.read_bytes()[:5])
    aside.replace(data)  # the mapping keeps the old file
    cache.truncate(2)
    assert np.array_equal(backend.forward(cache, TOKENS[2:3]), before)
    write_artefact(tmp_path, spec, random_tensors(spec), uniform_formats(spec, tiny_format(8)))
    backend = open_backend(tmp_path)
    cache = backend.new_cache(10)
    os.utime(data, ns=(1, 1))
    with pytest.raises(ArtefactError, match="changed since it was opened"):
        backend.forward(cache, TOKENS[:2])
    assert cache.length_tokens == 0
    os.truncate(data, os.path.getsize(data) - 1)
    with pytest.raises(ArtefactError, match=DATA_FILE):
        open_backend(tmp_path)


def tiny_format(bits):
    from edgetok.formats.layout import TensorFormat

    return TensorFormat(bits, 32)


_WARM = """
import sys, numpy as np
from pathlib import Path
from edgetok.runtime.cpu.backend import CpuBackend
backend = CpuBackend(sys.argv[1], threads=2, cache_dir=Path(sys.argv[2]))
cache = backend.new_cache(16)
backend.forward(cache, np.array([5, 6, 7], np.int32))
backend.forward(cache, np.array([8], np.int32))
print(sorted({"numba", "torch", "transformers", "onnxruntime"} & set(sys.modules)))
"""


def test_a_warm_start_imports_no_compiler(tiny, open_backend, kernel_cache):
    model = tiny("llama", 4)
    open_backend(model.artefact)
    command = [sys.executable, "-W", "error", "-c", _WARM, str(model.artefact), str(kernel_cache)]
    # Leaves without closing: the interpreter's exit must end the threads.
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


_FORKED = """
import os, sys, numpy as np
from pathlib import Path
from edgetok.runtime.cpu.backend import CpuBackend
backend = CpuBackend(sys.argv[1], threads=2, cache_dir=Path(sys.argv[2]))
cache = backend.new_cache(64)
tokens = np.arange(5, 25, dtype=np.int32)
before = backend.forward(cache, tokens).copy()
child = os.fork()
cache.clear()
same = np.array_equal(backend.forward(cache, tokens), before)
if child == 0:
    os._exit(0 if same else 3)
status = os.waitpid(child, 0)[1]
print(same, os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_its_own_team(tiny, open_backend, kernel_cache):
    model = tiny("llama", 4)
    open_backend(model.artefact)
    command = [sys.executable, "-c", _FORKED, str(model.artefact), str(kernel_cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True 0\n"), done.stderr


def test_the_protocol(tiny, open_backend):
    backend = open_backend(tiny("llama", 8).artefact)
    typed: Backend = backend
    cache: KVCache = typed.new_cache(12)
    assert typed.name == "cpu"
    assert typed.spec is not None
    assert typed.vocab_size == VOCAB_SIZE
    assert typed.context_tokens == typed.spec.context_tokens
    assert cache.capacity_tokens == 12
    assert cache.length_tokens == 0


def test_groups_of_16_are_refused(tiny, open_backend, tmp_path):
    spec = tiny("llama", 4).spec
    formats = uniform_formats(spec, TensorFormat(4, 16))
    write_artefact(tmp_path / "model", spec, random_tensors(spec), formats)
    with pytest.raises(UnsupportedError, match=r"in groups of 16, the cpu backend takes 32, 64"):
        open_backend(tmp_path / "model")
    OnnxRuntimeBackend(tmp_path / "model", threads=1).close()


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="a system without huge pages"
)
def test_weights_are_asked_for_in_huge_pages_and_tables_of_rows_are_not(tiny, kernel_cache):
    artefact = open_artefact(tiny("llama", 4).artefact)
    CpuBackend(artefact, threads=1, cache_dir=kernel_cache)
    places = {
        name: artefact.address(f"{name}.qweight") for name in ("embed_tokens", "layers.1.down_proj")
    }
    found, here = {}, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and ":" not in head:
            first, end = (int(part, 16) for part in head.split("-"))
            here = next((name for name, at in places.items() if first <= at < end), "")
        elif head == "VmFlags:" and here:
            found[here] = set(rest.split()) & {"hg", "nh"}
    assert found == {"embed_tokens": {"nh"}, "layers.1.down_proj": {"hg"}}
    artefact.close()
