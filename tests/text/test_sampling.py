"""Sampling against transformers' processors and warpers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edgetok.errors import ArtefactError, OptionError
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.random_shares import RandomShares, random_share
from edgetok.sampling.sampler import Sampler, candidates
from edgetok.sampling.steps import Choices, Penalties

PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def options(**changes: Any) -> SamplingOptions:
    return SamplingOptions(**{**PLAIN, **changes})


def theirs(logits: np.ndarray, o: SamplingOptions) -> np.ndarray:
    """Probabilities by transformers."""
    import torch
    from transformers.generation import logits_process as lp

    scores = torch.from_numpy(logits.astype(np.float64))[None]
    ids = torch.zeros(1, 1, dtype=torch.long)
    steps: list[Any] = [lp.TemperatureLogitsWarper(float(o.temperature))]
    if o.top_k:
        steps.append(lp.TopKLogitsWarper(o.top_k))
    if o.top_p < 1:
        steps.append(lp.TopPLogitsWarper(o.top_p))
    if o.min_p:
        steps.append(lp.MinPLogitsWarper(o.min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("size", [1, 2, 7, 300, 5003])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 5.0, "top_p": 0.99},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 10_000},
        {"top_p": 0.5},
        {"top_p": 0.9, "temperature": 1.7},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_p": 0.9, "min_p": 0.05},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 0.8},
    ],
    ids=str,
)
def test_as_transformers(size: int, changes: dict[str, Any]) -> None:
    logits = np.random.default_rng(size).normal(0, 3, size).astype(np.float32)
    o = options(**changes)
    ids, probabilities = candidates(logits, o)
    expected = theirs(logits, o)
    result = np.full(size, 0.0)
    result[ids] = probabilities
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-15)
    assert (np.diff(ids) > 0).all()


def test_flat_distribution_keeps_equals() -> None:
    ids, probabilities = candidates(np.zeros(1000, np.float32), options(top_k=3))
    assert len(ids) == 1000
    np.testing.assert_allclose(probabilities, 1e-3)


def test_top_p_zero_is_greedy() -> None:
    logits = np.array([0.0, 2.0, 1.0], np.float32)
    assert candidates(logits, options(top_p=0.0))[0].tolist() == [1]


def test_repetition_penalty_as_transformers() -> None:
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits = np.random.default_rng(3).normal(0, 3, 50).astype(np.float32)
    prompt = [3, 3, 7, 49]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([prompt]), torch.from_numpy(logits.copy())[None]
    )[0].numpy()
    choices = Choices(logits)
    Penalties(options(repetition_penalty=1.3), 50, prompt)(choices)
    np.testing.assert_allclose(choices.logits, expected, rtol=1e-6)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    o = options(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = Sampler(o, 3, [2, 2, 2])
    logits = np.array([1.0, 0.4, 0.3], np.float32)
    before = logits.copy()
    # token 0 costs 0.75 once seen and 0.25 more each time; likewise the others
    assert [sampler.sample(logits) for _ in range(4)] == [0, 1, 2, 0]
    np.testing.assert_array_equal(logits, before)


def test_greedy_takes_the_first_of_equals() -> None:
    sampler = Sampler(options(temperature=0.0), 4)
    assert sampler.sample(np.array([0, 5, 5, 1], np.float32)) == 1


def test_a_chooser_does_what_the_steps_say() -> None:
    """It gets the seed, the token's place and what was seen; its refusals are errors."""
    asked: list[tuple[int, int, list[list[int]] | None]] = []

    class Chooser:
        def choose(
            self, logits: Any, seed: int, index: int, seen: Any = None, mask: Any = None
        ) -> int:
            asked.append((seed, index, None if seen is None else seen.tolist()))
            return 7 if index < 2 else -4

    logits = np.zeros(10, np.float32)
    sampler = Sampler(options(seed=3, repetition_penalty=1.2), 10, [5, 2, 5], Chooser())
    assert [sampler.sample(logits), sampler.sample(logits)] == [7, 7]
    logits[3] = np.nan
    with pytest.raises(ArtefactError, match=r"not finite \(nan for token 3\)"):
        sampler.sample(logits)
    seen = [[[2, 0], [5, 0]], [[2, 0], [5, 0], [7, 1]], [[2, 0], [5, 0], [7, 2]]]
    assert asked == [(3, i, seen[i]) for i in range(3)]


def test_random_numbers_belong_to_places() -> None:
    shares = RandomShares(5)
    assert [shares.next() for _ in range(3)] == [random_share(5, i) for i in range(3)]
    assert RandomShares(None).seed != RandomShares(None).seed
    assert min(random_share(s, 0) for s in range(1000)) >= 0.0
    assert max(random_share(s, 0) for s in range(1000)) < 1.0


def test_many_tokens_are_remembered() -> None:
    o = options(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.1)
    penalties = Penalties(o, 2000, [1, 1, 1999, 2000, -1])
    for token in [*range(700), *range(0, 700, 2)]:
        penalties.chosen(token)
    seen = dict(penalties.seen.tolist())
    expected = {token: 1 + (token % 2 == 0) for token in range(700)} | {1999: 0}
    assert seen == expected
    assert len(penalties.seen) == len(seen)


def test_seed_decides() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(options(seed=seed), 1000)
        return [sampler.sample(logits) for _ in range(20)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(options(seed=1), 4)
    counts = Counter(sampler.sample(logits) for _ in range(20_000))
    # five standard deviations of a binomial share are 0.018
    for token, share in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert abs(counts[token] / 20_000 - share) < 0.018


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.999_999}, {"min_p": 1e-9}], ids=str)
def test_draws_of_a_large_vocabulary_follow_the_probabilities(changes: dict[str, Any]) -> None:
    logits = np.full(2001, -np.inf, np.float32)
    shares = {0: 0.4, 511: 0.3, 512: 0.15, 1999: 0.1, 2000: 0.05}
    for token, share in shares.items():
        logits[token] = np.log(share)
    sampler = Sampler(options(seed=1, **changes), logits.size)
    counts = Counter(sampler.sample(logits) for _ in range(20_000))
    assert counts.keys() == shares.keys()
    for token, share in shares.items():
        assert abs(counts[token] / 20_000 - share) < 0.018


def test_equals_at_the_edge_of_the_nucleus_are_taken_in_order() -> None:
    logits = np.zeros(1000, np.float32)
    logits[[400, 900]] = 2.0
    ids, _ = candidates(logits, options(top_p=0.5))
    weights = np.exp(logits.astype(np.float64))
    fewest = -(-(0.5 * weights.sum() - 2 * np.exp(2.0)) // 1)
    lighter = [i for i in range(1000) if i not in (400, 900)]
    assert ids.tolist() == sorted([*lighter[: int(fewest)], 400, 900])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(value: float, temperature: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[4] = value
    with pytest.raises(ArtefactError, match=r"not finite .* token 4"):
        Sampler(options(temperature=temperature), 10).sample(logits)


def test_masked_logits_are_never_drawn() -> None:
    logits = np.full(10, -np.inf, np.float32)
    logits[[2, 5]] = 0.0
    sampler = Sampler(options(seed=1, top_k=8, top_p=0.9), 10)
    assert {sampler.sample(logits) for _ in range(50)} <= {2, 5}


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"presence_penalty": 1000},
        {"frequency_penalty": float("inf")},
        {"seed": -1},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"stop": ("x",) * 65},
        {"stop": (5,)},
        {"unknown": 1},
    ],
    ids=str,
)
def test_bad_options(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(bad))):
        SamplingOptions().with_changes(bad)


def test_stop_may_be_one_text() -> None:
    assert SamplingOptions(stop="ab").stop == ("ab",)  # type: ignore[arg-type]


def test_generation_config() -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 9, "min_p": None}
    o = SamplingOptions.from_generation_config(config)
    assert (o.temperature, o.top_k, o.top_p, o.min_p) == (0.6, 20, 0.95, 0.0)
    greedy = SamplingOptions.from_generation_config({"do_sample": False, "temperature": 0.1})
    assert greedy == SamplingOptions()
