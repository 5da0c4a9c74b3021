"""Drafts: what is guessed, and that answers are the same with and without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgetok
from edgetok.engine.costs import Costs
from edgetok.engine.drafts import MOST_TOKENS, Drafter, best_length
from edgetok.engine.suffixes import LENGTHS, SuffixIndex

PROMPTS = [
    "Tom had a red ball. Tom had a red ball. Tom had a",
    "one two three four one two three four one two",
    "The dog said: woof, woof, woof, woof, woof",
    "Lily was sad because",
]


# What is guessed


@pytest.mark.parametrize("kinds", [2, 3, 8])
@pytest.mark.parametrize("at_once", [0, 1, 5, 200])
def test_the_latest_place_of_the_longest_run(kinds: int, at_once: int) -> None:
    tokens = np.random.default_rng(kinds).integers(0, kinds, 200).tolist()
    index = SuffixIndex(tokens[:at_once])
    for end in range(at_once, len(tokens) + 1):
        if end > at_once:
            index.add(tokens[end - 1])
        held = tokens[:end]
        assert index.tokens == held
        place, length = index.find()
        for run in LENGTHS:
            places = [i for i in range(run, end) if held[i - run : i] == held[end - run :]]
            if places:
                assert place == places[-1]
                assert length >= run
                break
        else:
            assert (place, length) == (0, 0)
        assert held[place - length : place] == held[end - length :] or not length


def test_what_follows_repeats_at_the_end() -> None:
    index = SuffixIndex([9, 1, 2, 3, 1, 2])
    assert index.find() == (3, 2)
    assert index.following(3, 3) == [3, 1, 2]
    assert index.following(3, 8) == [3, 1, 2, 3, 1, 2, 3, 1]


def test_chances_follow_what_comes() -> None:
    """Without any draft being computed: text that repeats, then text that contradicts."""
    drafter = Drafter(list(range(20)) * 2)
    before = drafter.guess(5)
    assert before[0] == [0, 1, 2, 3, 4]
    for token in list(range(20)) * 3:
        drafter.add(token)
    guessed, sure = drafter.guess(100)
    assert guessed == list(range(15))
    assert min(sure) > 0.95
    for other in range(30):
        for token in (1, 2, 100 + other):
            drafter.add(token)
    drafter.add(1)
    drafter.add(2)
    guessed, chances = drafter.guess(5)
    assert guessed[0] == 129
    assert chances[0] < 0.1


def test_forced_tokens_go_before_guesses() -> None:
    drafter = Drafter([1, 2, 3, 1, 2])
    assert drafter.guess(2, [7, 8, 9]) == ([7, 8], [1.0, 1.0])
    assert drafter.guess(2)[0] == [3, 1]


def test_as_much_of_a_draft_as_pays() -> None:
    def cost(rows: int) -> float:
        return 1.0 + 0.2 * rows

    assert best_length([0.1] * 10, 1.0, cost) == (0, 0.0)
    assert best_length([], 1.0, cost) == (0, 0.0)
    some, right = best_length([0.8] * 10, 1.0, cost)
    assert 2 <= some <= 5
    assert right == pytest.approx(sum(0.8**i for i in range(1, some + 1)))
    assert best_length([1.0] * 10, 1.0, cost)[0] == 10
    assert best_length([1.0] * 10, 1.0, lambda rows: 1.0 + rows)[0] == 0
    # Chances that rise along the draft: a later token may pay for those before it.
    assert best_length([0.4, 0.9, 0.95, 0.95, 0.95, 0.95], 1.0, cost)[0] == 6
    assert best_length([0.9], 8.0, lambda rows: 8.0 + rows) == (0, 0.0)


# Answers are the same


@pytest.fixture(scope="module")
def models(default_artefact: Path) -> Iterator[tuple[edgetok.Model, edgetok.Model]]:
    """One that drafts, one that does not."""
    with (
        edgetok.load(default_artefact, threads=1, context=512) as drafting,
        edgetok.load(default_artefact, threads=1, context=512, speculate=False) as plain,
    ):
        yield drafting, plain


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cost next to nothing: all that can be drafted is drafted."""
    monkeypatch.setattr(Costs, "is_fresh", lambda self, rows: True)
    monkeypatch.setattr(Costs, "decode_s", lambda self, rows: 1.0 + 1e-6 * rows)


def same(one: Any, other: Any) -> None:
    assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)


def held(context: Any) -> Any:
    """The tokens in a cache, and all that is saved of it but attention mass and its sum."""
    cache = context.cache
    slots = [group.table.state().tolist() for group in cache.groups]
    return context.tokens, cache.length_tokens, cache.position, slots


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts(models: Any, always: None, temperature: float) -> None:
    drafted = accepted = 0
    for seed in range(12):
        prompt = PROMPTS[seed % len(PROMPTS)]
        changes: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "max_tokens": 1 + 9 * (seed % 7),
        }
        if seed % 3 == 1:
            changes |= {"repetition_penalty": 1.05, "frequency_penalty": 0.2}
        if seed % 4 == 2:
            changes["stop"] = ("red", "two", ".")
        found, expected = (model.generate(prompt, **changes) for model in models)
        same(found, expected)
        assert expected.stats.drafted_tokens == 0
        assert 0 <= found.stats.accepted_tokens <= found.stats.drafted_tokens
        drafted += found.stats.drafted_tokens
        accepted += found.stats.accepted_tokens
    assert drafted > accepted > 20


@pytest.mark.parametrize("policy", [None, "none", "window", "h2o"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_conversations(
    default_artefact: Path, always: None, policy: str | None, temperature: float
) -> None:
    """With eviction in the middle of answers, retries, stops, cancelled answers and restores."""
    answers: list[list[Any]] = []
    drafted = 0
    for speculate in (True, False):
        with edgetok.load(
            default_artefact,
            threads=1,
            context=512 if policy == "none" else 128,
            kv_policy=policy,
            speculate=speculate,
        ) as model:
            made: list[Any] = []
            for seed in range(4):
                chat = model.new_chat(temperature=temperature, seed=seed, max_tokens=60)
                for text in ("Say red ball, red ball, red ball.", "Again!", "One more time."):
                    result = chat.send(text).run()
                    made.append((result.tokens, result.finish, held(chat._context)))
                    drafted += result.stats.drafted_tokens
                result = chat.retry(stop=("l",)).run()
                made.append((result.tokens, result.finish, held(chat._context)))
                stream = chat.send("And a blue ball, a blue ball, a blue ball?")
                for _ in range(5):
                    next(stream, None)
                read = stream.result
                stream.close()
                chat._settle()
                made.append((read.tokens, read.text))
                chat.retry()
                result = chat.send("And now?").run()
                made.append((result.tokens, result.finish))
            answers.append(made)
    assert answers[0] == answers[1]
    assert (drafted > 0) == (policy != "h2o")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_of_a_grammar(models: Any, always: None, temperature: float) -> None:
    """What the grammar forces is drafted, what it leaves open is guessed; masks are each row's."""
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {
            "the_colour_of_the_ball": {"enum": ["red", "blue"]},
            "how_many_balls_there_are": {"type": "integer"},
            "what_was_said": {"type": "string", "maxLength": 40},
        },
        "required": ["the_colour_of_the_ball", "how_many_balls_there_are", "what_was_said"],
    }
    accepted = 0
    for seed in range(6):
        found, expected = (
            model.generate(
                PROMPTS[seed % 4], schema=schema, temperature=temperature, seed=seed, max_tokens=120
            )
            for model in models
        )
        same(found, expected)
        assert found.complete == expected.complete
        accepted += found.stats.accepted_tokens
    assert accepted > 60


def test_log_probabilities(models: Any, always: None) -> None:
    found, expected = (
        model.generate(PROMPTS[1], temperature=0.0, max_tokens=30, logprobs=2) for model in models
    )
    same(found, expected)
    assert found.stats.accepted_tokens > 5
    assert found.logprobs == expected.logprobs


def test_in_company(models: Any, always: None) -> None:
    drafting, plain = models
    changes: dict[str, Any] = {"seed": 3, "max_tokens": 40}
    found = drafting.generate_batch(PROMPTS * 3, **changes)
    for one, other in zip(found, plain.generate_batch(PROMPTS * 3, **changes), strict=True):
        same(one, other)
    assert sum(one.stats.accepted_tokens for one in found) > 20

    async def read(prompt: str) -> Any:
        stream = drafting.stream(prompt, **changes)
        text = "".join([piece async for piece in stream])
        assert text == stream.result.text
        return stream.result

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(read, PROMPTS))

    for one, other in zip(asyncio.run(all_of_them()), found[: len(PROMPTS)], strict=True):
        same(one, other)


def test_each_piece_says_how_many_tokens_it_ends_with(models: Any, always: None) -> None:
    """So a reader who stops in the middle of a step has what it read, and no more."""
    changes: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40}
    for count in range(1, 12):
        read = []
        for model in models:
            stream = model.stream(PROMPTS[1], **changes)
            for _ in range(count):
                next(stream)
            stream.close()
            read.append((stream.result.tokens, stream.result.text))
        assert read[0] == read[1]


def test_drafts_begin_and_end_by_themselves(models: Any) -> None:
    """By measured costs, whatever they are on this machine: the answer is the same."""
    for prompt in PROMPTS:
        found, expected = (
            model.generate(prompt, temperature=0.0, max_tokens=80) for model in models
        )
        same(found, expected)


def test_a_draft_takes_no_memory(default_artefact: Path, always: None) -> None:
    """A step drafts no further than the slots that are there, so no draft can fail."""
    with edgetok.load(default_artefact, threads=1, context=300) as model:
        prompt = (model.tokenize("red ball ", special=False) * 100)[:240]
        model.engine.eos_tokens = frozenset()
        stream = model.stream(prompt, temperature=0.0, max_tokens=60)
        cache: Any = stream._sequence.context.cache
        rows = []
        step = model.backend.step

        def noted(parts: Any) -> Any:
            before = cache.length_tokens, cache.memory.groups[0].held_bytes
            found = step(parts)
            rows.append((parts[0].tokens.size, *before, cache.memory.groups[0].held_bytes))
            return found

        model.backend.step = noted
        stream.run()
    decoding = [row for row in rows if row[0] <= 1 + MOST_TOKENS]
    assert any(count > 1 for count, *_ in decoding)
    assert all(count == 1 or before == after for count, _, before, after in decoding)
    assert any(before < after for _, _, before, after in decoding), "no page was needed"
