"""Mamba2's recurrence and its step sizes against NumPy, in parts and cut anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu import reference_space
from edgetok.kernels_cpu.recurrent.launch import (
    state_columns,
    state_space,
    state_steps,
)
from tests.kernels_cpu.recurrent.running import State, in_pieces, run

MODULES = ("recurrent.state_space",)
SHAPES = [  # heads, groups, head dim, state dim
    (1, 1, 1, 1),
    (4, 2, 20, 10),
    (3, 1, 33, 17),
    (6, 3, 24, 20),
    (2, 1, 64, 128),
]


def state_of(guard, shape):
    """A cache's state before the first token."""
    heads, _, head_dim, state_dim = shape
    return State(guard, state_columns(heads, state_dim, head_dim))


def step(kernels, guard, shape, constants, parts, threads):
    """The results of each part (its state, source and steps) after one run."""
    heads, _, head_dim, _ = shape
    source, steps = (guard(np.concatenate([part[i] for part in parts])) for i in (1, 2))
    log_rate, skip = (guard(array.copy()) for array in constants)
    result = guard(np.full((len(source), heads * head_dim), np.nan, np.float32))
    made = state_space(
        kernels,
        source=source.ctypes.data,
        steps=steps.ctypes.data,
        result=result.ctypes.data,
        log_rate=log_rate.ctypes.data,
        skip=skip.ctypes.data,
        **dict(zip(("heads", "groups", "head_dim", "state_dim"), shape, strict=True)),
        state=3,
        wait=False,
    )
    run(made, len(source), threads, [(part[0], len(part[1])) for part in parts])
    return np.split(result, np.cumsum([len(part[1]) for part in parts])[:-1])


def random_text(rng, shape, tokens):
    heads, groups, head_dim, state_dim = shape
    source = rng.standard_normal((tokens, heads * head_dim + 2 * groups * state_dim))
    steps = rng.random((tokens, heads)) ** 3
    return [array.astype(np.float32) for array in (source, steps)]


def random_constants(rng, shape):
    return [rng.standard_normal(shape[0]).astype(np.float32) for _ in range(2)]


def truth(shape, text, constants):
    exact = [array.astype(np.float64) for array in (*text, *constants)]
    return reference_space.state_space(*exact, groups=shape[1], state_dim=shape[3])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_numpy_however_it_is_cut(each_kernels, guard, shape):
    rng = np.random.default_rng(shape[3])
    constants = random_constants(rng, shape)
    texts = [random_text(rng, shape, length) for length in (90, 41, 2)]
    truths = [truth(shape, text, constants) for text in texts]
    results = []
    for threads, most in ((1, 90), (2, 19), (3, 1)):
        states = [state_of(guard, shape) for _ in texts]

        def one(parts, threads=threads):
            return step(each_kernels, guard, shape, constants, parts, threads)

        results.append(in_pieces(texts, states, rng, most, one))
        for values, expected in zip(results[-1], truths, strict=True):
            # float32 sums of up to 128 products, of a state that adds up tens of tokens.
            np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-5 * shape[3] ** 0.5)
    for one in results[1:]:
        for values, others in zip(one, results[0], strict=True):
            np.testing.assert_array_equal(values, others)


def test_the_latest_tokens_can_be_taken_back(kernels, guard):
    shape = (4, 2, 20, 10)
    rng = np.random.default_rng(5)
    constants = random_constants(rng, shape)
    text, other = random_text(rng, shape, 40), random_text(rng, shape, 40)
    whole = step(kernels, guard, shape, constants, [(state_of(guard, shape), *text)], 1)[0]
    state = state_of(guard, shape)
    for first, end, back in ((0, 20, 3), (17, 19, 2), (17, 18, 0), (18, 40, 0)):
        part = (state, *(array[first:end] for array in text))
        (found,) = step(kernels, guard, shape, constants, [part], 1)
        np.testing.assert_array_equal(found, whole[first:end])
        if back:  # what is taken back was of another text
            state.seen -= back
            cut = slice(state.seen, state.seen + back)
            step(kernels, guard, shape, constants, [(state, *(a[cut] for a in other))], 1)
            state.seen -= back
    assert state.seen == 40


@pytest.mark.parametrize("heads", [1, 4, 33])
def test_steps(each_kernels, guard, heads):
    rng = np.random.default_rng(heads)
    value = guard(8 * rng.standard_normal((57, heads)).astype(np.float32))
    value[:3] = [[-80], [80], [0]]
    bias = guard(rng.standard_normal(heads).astype(np.float32))
    expected = reference_space.state_steps(value.astype(np.float64), bias.astype(np.float64))
    made = state_steps(
        each_kernels, value=value.ctypes.data, bias=bias.ctypes.data, heads=heads, wait=False
    )
    run(made, 57, 3)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-30)


def test_sizes_are_checked(kernels):
    good = {"heads": 4, "groups": 2, "head_dim": 8, "state_dim": 8, "state": 0}
    addresses = dict.fromkeys(("source", "steps", "result", "log_rate", "skip"), 0)
    for change in ({"groups": 0}, {"groups": 3}, {"state_dim": 0}, {"state": -1}):
        with pytest.raises(ShapeError, match="out of range"):
            state_space(kernels, **addresses, wait=False, **{**good, **change})
    with pytest.raises(ShapeError, match="expected at least 1"):
        state_steps(kernels, value=0, bias=0, heads=0, wait=False)
