"""Tokens chosen by kernel against a plain definition in float64, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.sampling.launch import SAMPLE_SCRATCH, Chooser, scratch_bytes
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.random_shares import random_bits, random_share
from edgetok.sampling.sampler import Sampler

MODULES = ("sampling.sample",)
SIZES = [1, 2, 40, 64, 65, 511, 513, 4100, 32_000]
OPTIONS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 1e-6},
    {"top_k": 1},
    {"top_k": 40, "top_p": 0.95, "temperature": 0.7},
    {"top_k": 40, "min_p": 0.2},
    {"top_k": 600},
    {"top_p": 0.5},
    {"top_p": 0.999, "temperature": 3.0},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
]


def penalised(logits, seen, repetition=1.0, presence=0.0, frequency=0.0, mask=None):
    x = logits.copy()
    for token, times in [] if seen is None else seen:
        v = x[token]
        v = v * np.float32(repetition) if v < 0 else v / np.float32(repetition)
        if times:
            v = v - np.float32(presence) - np.float32(frequency) * np.float32(times)
        x[token] = v
    if mask is not None:
        x[~mask] = -np.inf
    return x


def truth(x, share, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The definition: sort everything, in float64."""
    if temperature == 0:
        return int(np.argmax(x))
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isneginf(x), 0.0, np.exp((x - x.max()) / temperature))
    keep = np.ones(len(x), bool)
    if 0 < top_k < len(x):
        keep = x >= np.sort(x)[-top_k]
    if top_p < 1:
        kept = np.where(keep, weights, 0.0)
        order = np.argsort(-kept, kind="stable")
        count = int(np.searchsorted(np.cumsum(kept[order]), top_p * kept.sum())) + 1
        keep[order[count:]] = False
    keep &= weights >= min_p
    cumulated = np.cumsum(np.where(keep, weights, 0.0))
    place = int(np.searchsorted(cumulated, share * cumulated[-1], side="right"))
    return min(place, int(np.flatnonzero(keep & (weights > 0))[-1]))


def logits_of(rng, size):
    return (rng.standard_normal(size) * rng.choice([0.5, 3.0, 10.0])).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens(each_kernels, guard, size, options):
    rng = np.random.default_rng(size)
    chooser = Chooser(each_kernels, size, **options)
    scratch = guard(np.full(scratch_bytes(size), 0xFF, np.uint8))
    chooser._instruction[SAMPLE_SCRATCH] = scratch.ctypes.data
    for index in range(6):
        logits = guard(logits_of(rng, size), at_end=index % 2 == 0)
        before = logits.copy()
        scratch[:] = 0xFF  # NaN wherever something is read that was not written
        seed = int(rng.integers(0, 1 << 63)) * 2 + index % 2
        found = chooser.choose(logits, seed, index)
        assert found == truth(logits, random_share(seed, index), **options)
        np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("size", [40, 513, 4100])
def test_equal_logits(each_kernels, size):
    """The k-th largest's equals stay in; of a nucleus's last equals the first ids do."""
    rng = np.random.default_rng(1)
    for options in OPTIONS:
        chooser = Chooser(each_kernels, size, **options)
        for index in range(5):
            logits = rng.integers(0, 4, size).astype(np.float32)
            found = chooser.choose(logits, 7, index)
            assert found == truth(logits, random_share(7, index), **options), options
        level = np.zeros(size, np.float32)
        assert chooser.choose(level, 3, 0) == truth(level, random_share(3, 0), **options)


@pytest.mark.parametrize("size", [33, 700, 4096])
def test_penalties_and_masks(each_kernels, guard, size):
    rng = np.random.default_rng(2)
    for case in range(40):
        options = OPTIONS[case % len(OPTIONS)]
        changes = [(1.3, 0.0, 0.0), (1.0, 0.6, 0.0), (1.0, 0.0, 0.4), (0.8, -1.0, 0.3)][case % 4]
        logits = logits_of(rng, size)
        ids = rng.choice(size, min(size, 30), replace=False)
        seen = np.stack([ids, rng.integers(0, 4, len(ids))], axis=1).astype(np.int32)
        mask = rng.random(size) < (0.02, 0.5, 1.1)[case % 3]
        mask[rng.integers(size)] = True
        words = np.packbits(np.pad(mask, (0, -size % 32)), bitorder="little").view(np.uint32)
        chooser = Chooser(
            each_kernels, size, **options, repetition_penalty=changes[0],
            presence_penalty=changes[1], frequency_penalty=changes[2],
        )  # fmt: skip
        chooser._scratch[:] = 0xFF
        found = chooser.choose(guard(logits), 5, case, guard(seen), guard(words))
        x = penalised(logits, seen, *changes, mask)
        assert found == truth(x, random_share(5, case), **options)
        assert mask[found]


@pytest.mark.parametrize("size", [300, 5000])
def test_an_answer_is_numpys(each_kernels, size):
    """Token after token, with what was said before, as the sampler's steps choose."""
    rng = np.random.default_rng(4)
    for options in (*OPTIONS, {"repetition_penalty": 1.2, "top_k": 20},
                    {"presence_penalty": 1.0, "frequency_penalty": 0.5}):  # fmt: skip
        given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
        asked = SamplingOptions(seed=9, **given)
        prompt = rng.integers(0, size, 30).tolist()
        steps = Sampler(asked, size, prompt)
        compiled = Sampler(asked, size, prompt, Chooser(each_kernels, size, **given))
        for _ in range(12):
            logits = logits_of(rng, size)
            assert compiled.sample(logits) == steps.sample(logits)


def test_counts_follow_the_probabilities(each_kernels):
    """Whatever the generator, a token's share of many draws is its probability."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    for options in ({}, {"top_k": 4}):
        chooser = Chooser(each_kernels, 4, **options)
        draws = np.bincount([chooser.choose(logits, 1, i) for i in range(20_000)], minlength=4)
        np.testing.assert_allclose(draws / 20_000, np.exp(logits), atol=4 * 0.0036)


@pytest.mark.parametrize("size", [5, 64, 700])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_told(each_kernels, size, value):
    for place in (0, size // 2, size - 1):
        logits = np.zeros(size, np.float32)
        logits[place] = value
        for options in ({"temperature": 0.0}, {}, {"top_k": 2}):
            assert Chooser(each_kernels, size, **options).choose(logits, 0, 0) == -1 - place
    nothing = np.full(size, -np.inf, np.float32)
    assert Chooser(each_kernels, size).choose(nothing, 0, 0) == -1


def test_known_numbers(each_kernels):
    """Vectors of other implementations: Java's SplittableRandom and Vigna's splitmix64.c."""
    of_zero = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [random_bits(0, i) for i in range(4)] == of_zero
    assert [random_bits(1234567, i) for i in range(3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip
    assert random_share(0, 0) == (0xE220A8397B1DCDAF >> 11) / 2**53
    # All of equal weight: the token is the number itself, times how many there are.
    size = 1 << 15
    chooser, level = Chooser(each_kernels, size), np.zeros(size, np.float32)
    for seed in (0, 1, 1234567, (1 << 63) + 5, (1 << 64) - 1):
        for index in (0, 1, 1000, 1 << 40):
            assert chooser.choose(level, seed, index) == int(random_share(seed, index) * size)


def test_wrong_arrays_are_refused(kernels):
    chooser, logits = Chooser(kernels, 40), np.zeros(40, np.float32)
    seen, mask = np.zeros((3, 2), np.int32), np.zeros(2, np.uint32)
    assert chooser.choose(logits, 0, 0, seen, ~mask) >= 0
    for bad in (
        (logits.astype(np.float64), 0, 0),
        (logits[:39], 0, 0),
        (logits, 0, 0, seen.T),
        (logits, 0, 0, seen.astype(np.int64)),
        (logits, 0, 0, None, mask[:1]),
        (logits, 0, 0, None, mask.view(np.int32)),
    ):
        with pytest.raises(ShapeError, match="expected contiguous"):
            chooser.choose(*bad)
    for token in (-1, 40):
        with pytest.raises(ShapeError, match=r"no logit, expected 0\.\.39"):
            chooser.choose(logits, 0, 0, np.array([[3, 1], [token, 1]], np.int32))
    with pytest.raises(ShapeError, match="a vocabulary of 0 tokens"):
        Chooser(kernels, 0)
    assert scratch_bytes(1) > 0
