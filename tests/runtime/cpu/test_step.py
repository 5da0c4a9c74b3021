"""A step of several parts gives each sequence what it would get alone, on every backend."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ContextError, ShapeError, UnsupportedError
from edgetok.runtime.backend import Part
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from edgetok.sampling.device import Draw
from tests.reference_decoder import forward
from tests.tiny import VOCAB_SIZE

TOKENS = np.random.default_rng(7).integers(3, VOCAB_SIZE, 40).astype(np.int32)
# float32 sums in another order: logits reach 35, a few hundred roundings of 6e-8 each.
SAME = {"rtol": 1e-4, "atol": 2e-4}


@pytest.fixture(params=["cpu", "onnxruntime"])
def backend(request, tiny, kernel_cache):
    folder = tiny("gemma2", 16).artefact
    if request.param == "cpu":
        made = CpuBackend(
            folder, threads=1, block_tokens=16, cache_dir=kernel_cache, compute="float32",
            kv_bits=32,
        )  # fmt: skip
    else:
        made = OnnxRuntimeBackend(folder, threads=1, block_tokens=16)
    yield made
    made.close()


@pytest.fixture
def expected(tiny):
    model = tiny("gemma2", 16)
    return forward(model.spec, model.weights, TOKENS)


def test_parts_are_computed_as_if_alone(backend, expected):
    """Two sequences of the same tokens, one ahead of the other; all numbers of logits."""
    ahead, behind = backend.new_cache(40), backend.new_cache(40)
    (none,) = backend.step([Part(ahead, TOKENS[:9], 0)])
    assert none.shape == (0, VOCAB_SIZE)
    for wanted in range(5):
        first, second = ahead.length_tokens, behind.length_tokens
        parts = [
            Part(ahead, TOKENS[first : first + 1], min(wanted, 1)),
            Part(behind, TOKENS[second : second + 4], wanted),
        ]
        one, several = (rows.copy() for rows in backend.step(parts))
        assert one.dtype == several.dtype == np.float32
        np.testing.assert_allclose(one, expected[first : first + 1][: min(wanted, 1)], **SAME)
        np.testing.assert_allclose(several, expected[second + 4 - wanted : second + 4], **SAME)
    assert (ahead.length_tokens, behind.length_tokens) == (14, 20)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda a, b: [Part(a, TOKENS[:4], 5)], ShapeError),
        (lambda a, b: [Part(a, TOKENS[:4], -1)], ShapeError),
        (lambda a, b: [Part(a, TOKENS[:0], 0)], ShapeError),
        (lambda a, b: [Part(a, TOKENS[:17], 1)], ShapeError),
        (lambda a, b: [Part(a, TOKENS[:9], 1), Part(b, TOKENS[:9], 1)], ShapeError),
        (lambda a, b: [Part(a, TOKENS[:1], 1), Part(a, TOKENS[:1], 1)], ShapeError),
        (lambda a, b: [Part(a, TOKENS[:2], 1), Part(b, TOKENS[:11], 1)], ContextError),
    ],
    ids=["more-logits", "negative", "empty", "large", "rows", "twice", "context"],
)
def test_a_refused_step_changes_nothing(backend, make, error):
    a, b = backend.new_cache(40), backend.new_cache(10)
    with pytest.raises(error):
        backend.step(make(a, b))
    assert a.length_tokens == b.length_tokens == 0


def test_what_it_cannot_do_is_refused(backend):
    assert not backend.capabilities.samples
    draw = Draw(temperature=0.0, top_k=1, top_p=1.0, min_p=0.0, share=0.0)
    with pytest.raises(UnsupportedError, match="choose"):
        backend.step_sampled([Part(backend.new_cache(8), TOKENS[:1], 1)], [draw])
