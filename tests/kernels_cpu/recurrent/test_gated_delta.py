"""The gated delta rule and its gates against NumPy, in parts and cut anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference_delta
from edgetok.kernels_cpu.recurrent.launch import (
    delta_gates,
    delta_rule,
    state_columns,
)
from tests.kernels_cpu.recurrent.running import State, in_pieces, run

MODULES = ("recurrent.gated_delta",)
SHAPES = [  # key heads, value heads, key dim, value dim
    (1, 1, 1, 1),
    (2, 4, 10, 20),
    (1, 3, 17, 33),
    (2, 2, 64, 48),
    (1, 2, 128, 128),
]


def state_of(guard, shape):
    """A cache's state before the first token."""
    return State(guard, state_columns(*shape[1:]))


def step(kernels, guard, shape, parts, threads):
    """The results of each part (its state, source, beta and decay) after one run."""
    _, heads, _, dim = shape
    source, beta, decay = (guard(np.concatenate([part[i] for part in parts])) for i in (1, 2, 3))
    rows = len(source)
    result = guard(np.full((rows, heads * dim), np.nan, np.float32))
    made = delta_rule(
        kernels,
        source=source.ctypes.data,
        beta=beta.ctypes.data,
        decay=decay.ctypes.data,
        result=result.ctypes.data,
        **dict(zip(("key_heads", "value_heads", "key_dim", "value_dim"), shape, strict=True)),
        state=3,
        wait=False,
    )
    run(made, rows, threads, [(part[0], len(part[1])) for part in parts])
    return np.split(result, np.cumsum([len(part[1]) for part in parts])[:-1])


def random_text(rng, shape, tokens):
    key_heads, heads, key_dim, dim = shape
    source = rng.standard_normal((tokens, 2 * key_heads * key_dim + heads * dim))
    beta = rng.random((tokens, heads))
    decay = -0.3 * rng.random((tokens, heads)) ** 3
    return [array.astype(np.float32) for array in (source, beta, decay)]


def truth(shape, text):
    names = ("key_heads", "value_heads", "key_dim", "value_dim")
    exact = [array.astype(np.float64) for array in text]
    return reference_delta.delta_rule(*exact, **dict(zip(names, shape, strict=True)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_numpy_however_it_is_cut(each_kernels, guard, shape):
    rng = np.random.default_rng(shape[3])
    texts = [random_text(rng, shape, length) for length in (90, 41, 2)]
    truths = [truth(shape, text) for text in texts]
    results = []
    for threads, most in ((1, 90), (2, 9), (3, 1)):
        states = [state_of(guard, shape) for _ in texts]

        def one(parts, threads=threads):
            return step(each_kernels, guard, shape, parts, threads)

        results.append(in_pieces(texts, states, rng, most, one))
        for values, expected in zip(results[-1], truths, strict=True):
            np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-5)
    for one in results[1:]:
        for values, others in zip(one, results[0], strict=True):
            np.testing.assert_array_equal(values, others)


def test_the_latest_tokens_can_be_taken_back(kernels, guard):
    shape = (2, 4, 10, 20)
    rng = np.random.default_rng(5)
    text, other = random_text(rng, shape, 40), random_text(rng, shape, 40)
    whole = step(kernels, guard, shape, [(state_of(guard, shape), *text)], 1)[0]
    state = state_of(guard, shape)
    for first, end, back in ((0, 20, 3), (17, 19, 2), (17, 18, 0), (18, 40, 0)):
        (found,) = step(kernels, guard, shape, [(state, *(a[first:end] for a in text))], 1)
        np.testing.assert_array_equal(found, whole[first:end])
        if back:  # what is taken back was of another text
            state.seen -= back
            cut = slice(state.seen, state.seen + back)
            step(kernels, guard, shape, [(state, *(a[cut] for a in other))], 1)
            state.seen -= back
    assert state.seen == 40


@pytest.mark.parametrize("heads", [1, 4, 33])
def test_gates(each_kernels, guard, heads):
    rng = np.random.default_rng(heads)
    beta, decay = (guard(8 * rng.standard_normal((57, heads)).astype(np.float32)) for _ in "ab")
    decay[:3] = [[-80], [80], [0]]
    rates, bias = (guard(rng.standard_normal(heads).astype(np.float32)) for _ in "ab")
    exact = [array.astype(np.float64) for array in (beta, decay, rates, bias)]
    expected = reference_delta.delta_gates(*exact)
    made = delta_gates(
        each_kernels,
        beta=beta.ctypes.data,
        decay=decay.ctypes.data,
        log_rate=rates.ctypes.data,
        bias=bias.ctypes.data,
        heads=heads,
        wait=False,
    )
    run(made, 57, 3)
    np.testing.assert_allclose(beta, expected[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(decay, expected[1], rtol=2e-6, atol=1e-30)


def test_sizes_are_checked(kernels):
    good = {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 8, "state": 0}
    addresses = dict.fromkeys(("source", "beta", "decay", "result"), 0)
    for change in ({"key_heads": 0}, {"value_heads": 3}, {"key_dim": 0}, {"state": -1}):
        with pytest.raises(ShapeError, match="out of range"):
            delta_rule(kernels, **addresses, wait=False, **{**good, **change})
    with pytest.raises(ShapeError, match="expected at least 1"):
        delta_gates(kernels, beta=0, decay=0, log_rate=0, bias=0, heads=0, wait=False)
