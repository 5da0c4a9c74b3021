"""Recall cases: reproducible, on their side of the split, answerable, and scored strictly."""

from __future__ import annotations

import random

import pytest

from edgetok.evaluation import recall
from edgetok.evaluation import recall_patterns as words


@pytest.fixture(scope="module")
def cases() -> list[recall.RecallCase]:
    return list(recall.recall_cases(distances=(64, 512), count=12, seed=3))


def test_same_seed_same_cases(cases: list[recall.RecallCase]) -> None:
    assert list(recall.recall_cases(distances=(64, 512), count=12, seed=3)) == cases
    assert list(recall.recall_cases(distances=(64, 512), count=12, seed=4)) != cases


def test_a_case_does_not_depend_on_which_others_are_asked_for(
    cases: list[recall.RecallCase],
) -> None:
    alone = list(recall.recall_cases(["pass_key"], [512], 12, seed=3))
    assert alone == [c for c in cases if c.task == "pass_key" and c.distance == 512]


def test_every_task_and_half_unseen_wordings(cases: list[recall.RecallCase]) -> None:
    assert {c.task for c in cases} == set(recall.TASKS)
    assert sum(c.unseen_wording for c in cases) * 2 == len(cases)


def test_roles_alternate_and_the_user_asks_last(cases: list[recall.RecallCase]) -> None:
    for case in cases:
        roles = [m["role"] for m in case.messages]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert roles[-1] == "user"


def test_the_answer_is_told_and_differs_from_the_distractors(
    cases: list[recall.RecallCase],
) -> None:
    for case in cases:
        text = "\n".join(m["content"] for m in case.messages)
        assert case.expected in text
        assert case.expected not in case.distractors
        assert all(value in text for value in case.distractors)


@pytest.mark.parametrize("distance", [64, 256, 1500])
@pytest.mark.parametrize("task", recall.TASKS)
def test_distance_is_about_what_was_asked_for(task: str, distance: int) -> None:
    for case in recall.recall_cases([task], [distance], 4):
        text = "\n".join(m["content"] for m in case.messages)
        after = text.rindex(case.expected) if task == "pass_key" else 0
        tokens = recall.approximate_tokens(text[after:])
        assert distance * 0.6 < tokens < distance * 1.3 + 140


def test_update_expects_the_last_value() -> None:
    for case in recall.recall_cases(["update"], [64], 20):
        text = "\n".join(m["content"] for m in case.messages)
        assert case.distractors
        subject_values = [case.distractors[-1], case.expected]
        assert text.index(subject_values[0]) < text.index(subject_values[1])


def test_evaluation_and_training_draw_from_disjoint_sides() -> None:
    rng = random.Random(0)
    for pattern in words.PATTERNS:
        seen = {_identity(recall.make_fact(rng, pattern)) for _ in range(300)}
        kept = {_identity(recall.make_fact(rng, pattern, held_out=True)) for _ in range(300)}
        assert not seen & kept
    names = {recall.syllable_name(rng, False) for _ in range(500)}
    assert not names & {recall.syllable_name(rng, True) for _ in range(500)}
    numbers = {recall.number(rng, False) for _ in range(500)}
    assert not numbers & {recall.number(rng, True) for _ in range(500)}


def _identity(fact: recall.Fact) -> tuple[str, str]:
    return fact.slot, fact.value


def test_unseen_wordings_are_not_among_the_seen() -> None:
    for p in words.PATTERNS.values():
        assert not set(p.tell) & set(p.unseen_tell)
        assert not set(p.ask) & set(p.unseen_ask)
    for seen, unseen in (
        (words.ASK_PASS_KEY, words.UNSEEN_ASK_PASS_KEY),
        (words.PASS_KEYS, words.UNSEEN_PASS_KEYS),
        (words.ASK_VALUE, words.UNSEEN_ASK_VALUE),
        (words.ASK_VARIABLE, words.UNSEEN_ASK_VARIABLE),
        (words.LISTS, words.UNSEEN_LISTS),
    ):
        assert not set(seen) & set(unseen)


def test_variables_are_worth_what_following_the_lines_gives() -> None:
    for seed in range(30):
        lines, worth = recall.variable_lines(random.Random(seed), 6, held_out=True)
        memory: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(" = ")
            memory[name] = memory.get(value, value)
        assert memory == worth


@pytest.mark.parametrize("count", [1, 8, 16, 40])
def test_long_lists_end(count: int) -> None:
    pairs = recall.key_value_lines(random.Random(count), count, held_out=False)
    assert len(pairs) == len(set(pairs.values())) == count


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Your sister is called Ana.", True),
        ("ana", True),
        ("Your sister is called Anabel.", False),
        ("Ana or Ben, I think.", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_score(answer: str, right: bool) -> None:
    case = recall.RecallCase(
        task="facts", distance=64, messages=(), expected="Ana", distractors=("Ben",)
    )
    assert recall.score(answer, case) is right


def test_score_allows_a_wrong_value_that_the_question_names() -> None:
    case = recall.RecallCase(
        task="facts",
        distance=64,
        messages=({"role": "user", "content": "What is the job of Oscar?"},),
        expected="driver",
        distractors=("Oscar", "Ben"),
    )
    assert recall.score("Oscar is a driver.", case)
    assert not recall.score("Oscar is a driver like Ben.", case)
    assert not recall.score("Oscar is a baker.", case)


def test_score_wants_the_whole_number() -> None:
    case = recall.RecallCase(task="pass_key", distance=64, messages=(), expected="4821")
    assert recall.score("The pass key is 4821.", case)
    assert not recall.score("The pass key is 48210.", case)


def test_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"'nothing'.*pass_key"):
        recall.make_case(random.Random(0), "nothing", 64, recall.approximate_tokens, False)
