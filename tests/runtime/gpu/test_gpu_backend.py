"""The GPU backend against the NumPy decoder and the CPU backend: interpreted, or on a card."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

from edgetok.cache.protocol import KVCache
from edgetok.errors import (
    ArtefactError,
    ContextError,
    EdgetokError,
    OptionError,
    ShapeError,
    UnsupportedError,
)
from edgetok.formats.layout import TensorFormat, linear_shapes
from edgetok.kernels_gpu.device import Device
from edgetok.runtime.backend import Backend, Interrupted
from edgetok.runtime.base import forward_sampled
from edgetok.runtime.gpu import plan
from edgetok.runtime.gpu.backend import GpuBackend
from edgetok.runtime.gpu.weights import Weights
from edgetok.sampling.device import Draw
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import candidates
from tests.reference_decoder import forward
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import FAMILIES, UNLIKE_LAYERS, VOCAB_SIZE, WITH_STATES

pytestmark = pytest.mark.gpu
TOKENS = np.random.default_rng(7).integers(3, VOCAB_SIZE, 14).astype(np.int32)
# Float16 keys, values, queries and probabilities: 5e-4 each.
FLOAT16_SHARE = 4e-3
# An int8 cache rounds keys and values to 0.5 % of their largest.
INT8_SHARE = 0.03


@pytest.fixture
def open_backend(on_card):
    opened = []

    def make(folder, **options):
        device = None if on_card else Device(interpreted=True)
        opened.append(GpuBackend(folder, device=device, **{"block_tokens": 6} | options))
        return opened[-1]

    yield make
    for backend in opened:
        backend.close()


def share(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def greedy(backend, prompt, count, capacity):
    cache = backend.new_cache(capacity)
    logits, out = backend.forward(cache, prompt), []
    for _ in range(count):
        out.append(int(np.argmax(logits)))
        logits = backend.forward(cache, np.array(out[-1:], np.int32))
    return out


# The interpreter is slow. Between them every branch: biases, norms before, after and of queries and
# keys, windows, caps, partial and absent rotations, multipliers.
VARIED = ("llama", "gemma2", "phi3", "smollm3", "olmo2", "granite")

REFUSED = ("ministral3", "arcee", "hunyuan_v1_dense", "cohere2")  # of an operation without an entry
ON_GPU = tuple(
    family for family in FAMILIES if family not in (*WITH_STATES, *UNLIKE_LAYERS, *REFUSED)
)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("lfm2", "ShortConv"),
        ("qwen3_next", "CausalConv"),
        ("ministral3", "PositionScale"),
        ("arcee", "Activate"),
        ("cohere2", "Norm"),
    ],
)
def test_kinds_of_operations_are_refused(family, kind, tiny, open_backend):
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    with pytest.raises(UnsupportedError, match=f"the GPU backend does not compute {kind}"):
        open_backend(tiny(family, 4).artefact)


@pytest.mark.parametrize("family", VARIED if os.environ.get("TRITON_INTERPRET") == "1" else ON_GPU)
def test_prefill_and_decode(family, tiny, open_backend):
    """Blocks, then single tokens."""
    model = tiny(family, 4)
    expected = forward(model.spec, model.weights, TOKENS)
    backend = open_backend(model.artefact, kv_bits=16, compute="float32")
    cache = backend.new_cache(len(TOKENS))
    found = backend.forward(cache, TOKENS[:12], all_logits=True)
    assert share(found, expected[:12]) < FLOAT16_SHARE
    for i in (12, 13):  # launched one by one, then as a graph
        assert share(backend.forward(cache, TOKENS[i : i + 1]), expected[i]) < 2 * FLOAT16_SHARE


@pytest.mark.parametrize(
    "form",
    [TensorFormat(4, 32, table=True), TensorFormat(5, 32), TensorFormat(6, 32)],
    ids=["table", "5 bits", "6 bits"],
)
def test_planes_and_tables(form, tiny, tmp_path, open_backend):
    spec = _whole_groups(tiny("llama", 4).spec)
    formats = uniform_formats(spec, form)
    weights = write_artefact(tmp_path / "made", spec, random_tensors(spec), formats)
    expected = forward(spec, weights, TOKENS)
    backend = open_backend(tmp_path / "made", kv_bits=16)
    cache = backend.new_cache(64)
    assert share(backend.forward(cache, TOKENS[:-1]), expected[-2]) < 2 * FLOAT16_SHARE
    assert share(backend.forward(cache, TOKENS[-1:]), expected[-1]) < 2 * FLOAT16_SHARE


def test_offsets_are_refused(tiny, tmp_path, open_backend):
    spec = _whole_groups(tiny("llama", 4).spec)
    form = TensorFormat(4, 32, offsets=True)
    folder = tmp_path / "made"
    write_artefact(folder, spec, random_tensors(spec), uniform_formats(spec, form))
    with pytest.raises(UnsupportedError, match="has 4 bits with super-scales or offsets"):
        open_backend(folder)


def _whole_groups(spec):
    """The decoder with sizes that are multiples of 32."""
    return replace(spec, hidden_size=96, intermediate_size=128)


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_every_width(bits, tiny, open_backend):
    model = tiny("llama", bits)
    expected = forward(model.spec, model.weights, TOKENS)
    for options, limit in (({"kv_bits": 16}, 2 * FLOAT16_SHARE), ({}, INT8_SHARE)):
        backend = open_backend(model.artefact, **options)
        cache = backend.new_cache(64)
        assert share(backend.forward(cache, TOKENS[:-1]), expected[-2]) < limit
        assert share(backend.forward(cache, TOKENS[-1:]), expected[-1]) < limit


def test_layers_of_different_formats(tmp_path, tiny, open_backend):
    """Where queries, keys and values, or gate and up, cannot be one product."""
    spec = tiny("llama", 4).spec
    widths = {
        "k_proj": (8, False),
        "v_proj": (3, True),
        "up_proj": (2, True),
        "o_proj": (32, False),
    }
    formats = {
        name: TensorFormat(*_format(widths.get(name.rpartition(".")[2], (4, True))))
        for name in linear_shapes(spec)
    }
    weights = write_artefact(tmp_path / "mixed", spec, random_tensors(spec), formats)
    expected = forward(spec, weights, TOKENS)
    backend = open_backend(tmp_path / "mixed", kv_bits=16)
    cache = backend.new_cache(64)
    assert share(backend.forward(cache, TOKENS[:-1]), expected[-2]) < 2 * FLOAT16_SHARE
    assert share(backend.forward(cache, TOKENS[-1:]), expected[-1]) < 2 * FLOAT16_SHARE


def _format(width):
    bits, zeros = width
    return bits, 32, zeros


def test_the_shipped_model_says_what_the_cpu_says(
    default_artefact, open_backend, kernel_cache, on_card
):
    """Greedy tokens; a step where the CPU's two best are within rounding may go either way."""
    from edgetok.runtime.cpu.backend import CpuBackend

    count = 500 if on_card else 6
    ours = open_backend(default_artefact, block_tokens=64)
    theirs = CpuBackend(default_artefact, threads=1, cache_dir=kernel_cache, compute="float32")
    prompt = np.random.default_rng(3).integers(5, 4000, 9).astype(np.int32)
    a, b = ours.new_cache(1024), theirs.new_cache(1024)
    mine, other = ours.forward(a, prompt), theirs.forward(b, prompt)
    for _ in range(count):
        token = int(np.argmax(other))
        tie = other[token] - other[int(np.argmax(mine))]
        assert tie <= 0.02 * np.abs(other).max()
        step = np.array([token], np.int32)
        mine, other = ours.forward(a, step), theirs.forward(b, step)
    theirs.close()


def test_tokens_are_chosen_on_the_device(tiny, open_backend):
    model = tiny("llama", 4)
    backend = open_backend(model.artefact)
    assert backend.capabilities.samples
    likely = Draw(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, share=0.0)
    cache, found = backend.new_cache(64), []
    step = TOKENS[:7]
    for _ in range(4):
        found.append(forward_sampled(backend, cache, step, likely))
        step = np.array(found[-1:], np.int32)
    assert found == greedy(backend, TOKENS[:7], 4, 64)
    options = SamplingOptions(top_k=5, top_p=0.9, temperature=1.5)
    logits = backend.forward(cache, step).copy()
    ids, _ = candidates(logits, options)
    drawn = []
    for share in (0.0, 0.99999999):
        assert cache.truncate(cache.length_tokens - 1)
        draw = Draw(temperature=1.5, top_k=5, top_p=0.9, min_p=0.0, share=share)
        drawn.append(forward_sampled(backend, cache, step, draw))
    assert drawn == [ids[0], ids[-1]]


def test_truncate_and_compute_again(tiny, open_backend):
    model = tiny("llama", 4)
    backend = open_backend(model.artefact)
    cache = backend.new_cache(40)
    backend.forward(cache, TOKENS)
    first = backend.forward(cache, TOKENS[:1]).copy()
    assert cache.truncate(5)
    assert cache.length_tokens == 5
    backend.forward(cache, TOKENS[5:])
    # Products of 9 rows end in another last bit than those of 14, and so do scales of 8-bit slots.
    np.testing.assert_allclose(backend.forward(cache, TOKENS[:1]), first, rtol=0, atol=1e-5)
    cache.clear()
    assert cache.length_tokens == 0


def test_a_ring_says_no(tiny, open_backend):
    """Windows of 8 tokens: what was overwritten cannot be gone back to."""
    backend = open_backend(tiny("mistral", 4).artefact)
    cache = backend.new_cache(200)
    for _ in range(5):
        backend.forward(cache, TOKENS)
    assert not cache.truncate(3)
    assert cache.length_tokens == 5 * len(TOKENS)


def test_stops_between_blocks(tiny, open_backend):
    backend = open_backend(tiny("llama", 4).artefact)
    cache = backend.new_cache(40)
    with pytest.raises(Interrupted):
        backend.forward(cache, TOKENS, should_stop=lambda: True)
    assert cache.length_tokens == 6


def test_refusals(tiny, open_backend):
    model = tiny("llama", 4)
    backend: Backend = open_backend(model.artefact)
    cache: KVCache = backend.new_cache(4)
    with pytest.raises(ContextError, match="14 tokens"):
        backend.forward(cache, TOKENS)
    with pytest.raises(OptionError, match=r"expected 0\.\.306"):
        backend.forward(cache, np.array([VOCAB_SIZE]))
    with pytest.raises(ShapeError, match="expected integers"):
        backend.forward(cache, TOKENS[None])
    with pytest.raises(ShapeError, match="not a cache of this backend"):
        backend.forward(object(), TOKENS)
    with pytest.raises(OptionError, match="whole number"):
        backend.new_cache(0)
    with pytest.raises(OptionError, match="whole number"):
        backend.new_cache(2**31)
    with pytest.raises(OptionError, match="kv_bits is 32"):
        open_backend(model.artefact, kv_bits=32)
    backend.close()
    backend.close()
    with pytest.raises(EdgetokError, match="closed"):
        backend.forward(cache, TOKENS[:1])


def test_damaged_weights_are_named(tiny, open_backend, monkeypatch):
    """Logits that are no numbers end an answer with one line, not with a wrong token."""
    made = []

    def weights(*args):
        made.append(Weights(*args))
        return made[0]

    monkeypatch.setattr(plan, "Weights", weights)
    backend = open_backend(tiny("llama", 4).artefact)
    made[0].norms["final_norm.weight"][:] = float("nan")
    draw = Draw(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, share=0.0)
    with pytest.raises(ArtefactError, match="not finite"):
        forward_sampled(backend, backend.new_cache(8), TOKENS[:1], draw)


@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_layers_shared_with_the_cpu(family, tiny, on_card, kernel_cache):
    """Any split gives the same answer: windows, a tied embedding, its scale and biases."""
    from edgetok.formats.artefact import open_artefact
    from edgetok.runtime.cpu.backend import CpuBackend
    from edgetok.runtime.gpu.placement import first_layers

    model = tiny(family, 16)
    expected = forward(model.spec, model.weights, TOKENS)
    for count in (1, model.spec.num_layers - 1):
        artefact = open_artefact(model.artefact)
        before = CpuBackend(
            first_layers(artefact, model.spec, model.spec.num_layers - count),
            threads=1, cache_dir=kernel_cache, kv_bits=16, compute="float32",
        )  # fmt: skip
        device = None if on_card else Device(interpreted=True)
        backend = GpuBackend(
            artefact, device=device, before=before, kv_bits=16, compute="float32", block_tokens=6
        )
        cache = backend.new_cache(20)
        found = backend.forward(cache, TOKENS[:8])
        assert share(found, expected[7]) < FLOAT16_SHARE
        assert cache.truncate(7)
        for i in (7, 8):  # launched one by one, then as a graph
            found = backend.forward(cache, TOKENS[i : i + 1])
            assert share(found, expected[i]) < 2 * FLOAT16_SHARE
        assert cache.before.length_tokens == cache.length_tokens == 9
        assert cache.nbytes > cache.before.nbytes > 0
        assert cache.read_bytes > cache.before.read_bytes > 0
        backend.close()
