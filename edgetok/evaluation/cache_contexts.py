"""Contexts with several questions each, to measure the recall of a bounded cache.

A cache must not choose by the question, so a context is read and compressed first and asked
afterwards, every question from the same state. Facts come from the generators in `recall.py`, from
the side of their split that training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edgetok.evaluation import recall
from edgetok.evaluation import recall_patterns as words

TASKS = ("facts", "pass_key", "multi_key", "variable")
_FACTS = 6
_TIMES = {"pass_key": 4}  # its contexts have one question, others four or more
_PLACEHOLDER = "?"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its right answer, and the wrong values that the context mentions.

    Attributes:
        place: share of the context that comes before the answer: 0 at its beginning.
    """

    ask: str
    expected: str
    wrong: tuple[str, ...]
    place: float

    def case(self, task: str) -> recall.RecallCase:
        """Return the question as a case for `recall.score`."""
        return recall.RecallCase(
            task=task, distance=0, messages=(), expected=self.expected, distractors=self.wrong
        )


@dataclass(frozen=True, slots=True)
class Context:
    """A conversation, and questions that could end it."""

    task: str
    messages: tuple[recall.Message, ...]
    questions: tuple[Question, ...]

    def prompt(self, question: Question | None) -> list[recall.Message]:
        """Return the conversation with a question, or with a placeholder in its place."""
        text = _PLACEHOLDER if question is None else question.ask
        return [*map(dict, self.messages), {"role": "user", "content": text}]


def contexts(
    tasks: Sequence[str],
    tokens: int,
    count: int,
    count_tokens: Callable[[str], int],
    seed: int = 0,
) -> Iterator[Context]:
    """`count` contexts of about `tokens` tokens for every task, more of those with one question.

    Raises:
        ValueError: a task is unknown.
    """
    for task in tasks:
        rng = random.Random(f"{seed}|{task}|{tokens}")
        for _ in range(count * _TIMES.get(task, 1)):
            yield _MAKERS[task](rng, tokens, count_tokens)


def _user(text: str) -> recall.Message:
    return {"role": "user", "content": text}


def _noted(rng: random.Random) -> recall.Message:
    return {"role": "assistant", "content": rng.choice(words.NOTED)}


def _facts(rng: random.Random, tokens: int, count: Callable[[str], int]) -> Context:
    """Facts told one by one with small talk between: multi-turn memory by lag."""
    facts: list[recall.Fact] = []
    while len(facts) < _FACTS:
        new = recall.make_fact(rng, rng.choice(tuple(words.PATTERNS)), held_out=True)
        if all(new.slot != f.slot and new.value != f.value for f in facts):
            facts.append(new)
    messages: list[recall.Message] = []
    questions = []
    for i, fact in enumerate(facts):
        wrong = tuple(f.value for f in facts if f is not fact)
        questions.append(Question(fact.ask, fact.value, wrong, i / _FACTS))
        messages += [_user(fact.tell), _noted(rng)]
        messages += recall.filler_turns(rng, tokens // _FACTS - 30, count)
    return Context("facts", tuple(messages), tuple(questions))


def _pass_key(rng: random.Random, tokens: int, count: Callable[[str], int]) -> Context:
    """Return a number at a random depth of a long plain text."""
    value = recall.number(rng, True, 5)
    depth = rng.random()
    told, placed, used = [], False, 0
    while used < tokens - 40:
        if not placed and used >= depth * (tokens - 60):
            told.append(rng.choice(words.PASS_KEYS).format(v=value))
            placed = True
        told.append(recall.filler_sentence(rng))
        used += count(told[-1])
    if not placed:
        told.append(rng.choice(words.PASS_KEYS).format(v=value))
    messages = (_user(" ".join(told)), {"role": "assistant", "content": rng.choice(words.NOTED)})
    return Context(
        "pass_key", messages, (Question(rng.choice(words.ASK_PASS_KEY), value, (), depth),)
    )


def _lines(
    rng: random.Random,
    task: str,
    tokens: int,
    count: Callable[[str], int],
    text: str,
    worth: dict[str, str],
    asks: Sequence[str],
) -> Context:
    """Return a block of lines at a random depth of small talk, and questions about four of them."""
    depth = rng.random() * 0.8
    before = recall.filler_turns(rng, int(depth * (tokens - 100)), count)
    after = recall.filler_turns(rng, int((1 - depth) * (tokens - 100)), count)
    questions = []
    for key in rng.sample(sorted(worth), min(4, len(worth))):
        wrong = tuple(sorted({v for v in worth.values() if v != worth[key]}))
        questions.append(Question(rng.choice(asks).format(s=key), worth[key], wrong, depth))
    messages = (*before, _user(text), _noted(rng), *after)
    return Context(task, messages, tuple(questions))


def _multi_key(rng: random.Random, tokens: int, count: Callable[[str], int]) -> Context:
    pairs = recall.key_value_lines(rng, rng.randrange(5, 9), held_out=True)
    text = "\n".join([rng.choice(words.LISTS), *(f"- {k}: {v}" for k, v in pairs.items())])
    return _lines(rng, "multi_key", tokens, count, text, pairs, words.ASK_VALUE)


def _variable(rng: random.Random, tokens: int, count: Callable[[str], int]) -> Context:
    lines, worth = recall.variable_lines(rng, rng.randrange(3, 7), held_out=True)
    return _lines(rng, "variable", tokens, count, "\n".join(lines), worth, words.ASK_VARIABLE)


_MAKERS = {
    "facts": _facts,
    "pass_key": _pass_key,
    "multi_key": _multi_key,
    "variable": _variable,
}
