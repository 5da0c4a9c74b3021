"""Recall in context: cases that ask for something mentioned earlier, and the scoring of answers.

A case is a conversation whose last message is a question; the answer stands `distance` tokens
earlier. Training draws from the same tables with `held_out=False` and can never meet what an
evaluation asks: a hash keeps one (subject, value) pair in ten, one number in ten and one
invented name in ten aside, and the wordings in the `unseen` fields are for evaluation alone.

    recall_cases(tasks, distances, count, ...) -> cases;  score(answer, case) -> bool

No model and no third-party package is needed here.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edgetok.evaluation import recall_patterns as words

TASKS = ("facts", "syllable_names", "several", "update", "key_value", "pass_key", "variable")
DISTANCES = (64, 128, 256, 512, 1024, 1500)

Message = dict[str, str]
CountTokens = Callable[[str], int]

_ONSETS = [
    "b",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "br",
    "dr",
    "gr",
    "kr",
    "pl",
    "st",
    "tr",
    "sh",
    "th",
]
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea"]
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "t"]


def is_held_out(*parts: str) -> bool:
    """Return whether this combination is for evaluation: one in ten, by hash."""
    return hashlib.sha256("|".join(parts).encode()).digest()[0] % 10 == 0


def filler_sentence(rng: random.Random) -> str:
    """Return a plain sentence that carries no fact anybody asks for."""
    parts = (words.WHO, words.DID, words.WHAT, words.HOW)
    return " ".join(rng.choice(part) for part in parts) + "."


def syllable_name(rng: random.Random, held_out: bool) -> str:
    """Return an invented capitalised name of two or three syllables."""
    while True:
        n = rng.choice((2, 2, 3))
        name = "".join(
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if i == n - 1 else "")
            for i in range(n)
        ).capitalize()
        if is_held_out(name) == held_out:
            return name


def number(rng: random.Random, held_out: bool, digits: int = 0) -> str:
    """Return a number of `digits` digits (two to five when 0) that does not begin with zero."""
    while True:
        n = digits or rng.choice((2, 3, 4, 4, 5))
        text = str(rng.randrange(10 ** (n - 1), 10**n))
        if is_held_out(text) == held_out:
            return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A told fact with the question that asks for it."""

    slot: str
    tell: str
    ask: str
    answer: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallCase:
    """A conversation ending in a question, its answer and the wrong answers it offers."""

    task: str
    distance: int
    messages: tuple[Message, ...]
    expected: str
    distractors: tuple[str, ...] = field(default=())
    unseen_wording: bool = False


def make_fact(
    rng: random.Random,
    pattern: str,
    *,
    held_out: bool = False,
    unseen_wording: bool = False,
    invented: bool = False,
    subject: str = "",
    value: str = "",
    changed: bool = False,
) -> Fact:
    """Draw one fact.

    Args:
        rng: source of randomness.
        pattern: key of `PATTERNS`.
        held_out: take (subject, value) from the evaluation side of the split.
        unseen_wording: use the wordings that training never uses.
        invented: a random-syllable name instead of a known one, where the value is a name.
        subject: keep this subject (for updates).
        value: keep this value, whatever side of the split it is on.
        changed: word it as a change of an earlier fact.
    """
    p = words.PATTERNS[pattern]
    while True:
        s = subject or rng.choice(p.subjects)
        kind = p.value.format(s=s)
        if value:
            v = value
        elif kind == "number":
            v = number(rng, held_out)
        elif invented and kind in ("name", "pet"):
            v = syllable_name(rng, held_out)
        else:
            pool = {"name": words.NAMES, "pet": words.PET_NAMES}.get(kind) or words.WORDS[kind]
            v = rng.choice(pool)
            if is_held_out(s, v) != held_out:
                # A subject may have no pair on the wanted side: draw the subject again.
                if not any(is_held_out(s, w) == held_out for w in pool):
                    subject = ""
                continue
        break
    tell = p.change if changed else p.unseen_tell if unseen_wording else p.tell
    ask = p.unseen_ask if unseen_wording else p.ask
    prefix = rng.choice(words.UNSEEN_PREFIXES if unseen_wording else words.PREFIXES)
    told = rng.choice(tell).format(s=s, v=v)
    if prefix.endswith((", ", ": ")) and told.startswith(
        ("My ", "The ", "You ", "If ", "They ", "This ", "Here ", "Look ", "Write ")
    ):
        told = told[0].lower() + told[1:]
    return Fact(
        slot=f"{pattern}|{s}",
        tell=prefix + told,
        ask=rng.choice(ask).format(s=s),
        answer=p.answer.format(s=s, v=v),
        value=v,
    )


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def filler_turns(rng: random.Random, tokens: int, count_tokens: CountTokens) -> list[Message]:
    """Small talk of about `tokens` tokens, whole turns, the assistant speaking last."""
    turns: list[Message] = []
    left = tokens
    while left > 8:
        ask = rng.choice(words.CHATTER)
        left -= count_tokens(ask) + 10  # two turns cost about ten tokens of template
        text = filler_sentence(rng)
        for _ in range(rng.randrange(2, 9)):
            left -= count_tokens(text.rsplit(". ", 1)[-1])
            if left <= 8:
                break
            text += " " + filler_sentence(rng)
        turns += [_user(ask), _assistant(text)]
    return turns


def _told(rng: random.Random, facts: Sequence[Fact]) -> list[Message]:
    out: list[Message] = []
    for fact in facts:
        out += [_user(fact.tell), _assistant(rng.choice(words.NOTED))]
    return out


def _distinct(count: int, draw: Callable[[], Fact]) -> list[Fact]:
    facts: list[Fact] = []
    while len(facts) < count:
        new = draw()
        if all(new.slot != f.slot and new.value != f.value for f in facts):
            facts.append(new)
    return facts


def _fact_case(
    rng: random.Random, task: str, unseen: bool
) -> tuple[list[Message], Fact, tuple[str, ...]]:
    """The telling part of a dialogue case; the asked fact comes last wherever order is free."""

    def draw(pattern: str = "") -> Fact:
        named = ("people", "pets", "owners")
        choice = pattern or rng.choice(named if task == "syllable_names" else tuple(words.PATTERNS))
        return make_fact(
            rng,
            choice,
            held_out=True,
            unseen_wording=unseen,
            invented=task == "syllable_names",
        )

    if task == "several":
        kind = rng.choice(("people", "pets", "codes", "homes", "owners"))
        facts = _distinct(4, lambda: draw(kind))
    else:
        facts = _distinct(2, draw)
    asked = facts[-1]
    messages = _told(rng, facts)
    if task == "update":
        pattern, subject = asked.slot.split("|")
        new = asked
        for _ in range(50):  # a subject may have a single held-out value
            new = make_fact(
                rng,
                pattern,
                held_out=True,
                unseen_wording=unseen,
                subject=subject,
                changed=True,
            )
            if new.slot == asked.slot and new.value != asked.value:
                break
        else:
            return _fact_case(rng, task, unseen)
        messages += _told(rng, [new])
        facts.append(asked)
        asked = new
    return messages, asked, tuple(f.value for f in facts if f.value != asked.value)


def key_value_lines(
    rng: random.Random, count: int, held_out: bool, draw: Callable[[str], str] | None = None
) -> dict[str, str]:
    """`count` pairs of invented keys and numbers, names or words, values distinct.

    `draw` gives the value of a kind instead, and of the kind `key` the keys.
    """
    kind = rng.choice(("number", "number", "name", "colour" if count <= 8 else "number"))
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        key = draw("key") if draw else syllable_name(rng, held_out).lower()
        usual = {
            "number": lambda: number(rng, held_out),
            "name": lambda: syllable_name(rng, held_out),
            "colour": lambda: rng.choice(words.WORDS["colour"]),
        }
        value = draw(kind) if draw else usual[kind]()
        if key not in pairs and value not in pairs.values():
            pairs[key] = value
    return pairs


def variable_lines(
    rng: random.Random,
    count: int,
    held_out: bool,
    draw: Callable[[str], str] | None = None,
    chained: float = 0.4,
) -> tuple[list[str], dict[str, str]]:
    """Assignments such as `x = 42` and `y = x`; returns the lines and what each name is worth.

    `draw` gives the value of a kind instead, `chained` is the share of the second sort.
    """
    names = rng.sample("abcdefghjkmnpqrstuvwxyz", count)
    worth: dict[str, str] = {}
    lines = []
    for i, name in enumerate(names):
        if i and rng.random() < chained:
            source = rng.choice(names[:i])
            worth[name] = worth[source]
            lines.append(f"{name} = {source}")
        else:
            size = rng.choice((2, 3))
            worth[name] = draw("number") if draw else number(rng, held_out, size)
            lines.append(f"{name} = {worth[name]}")
    return lines, worth


def make_case(
    rng: random.Random, task: str, distance: int, count_tokens: CountTokens, unseen: bool
) -> RecallCase:
    """Return one held-out case of `task` with about `distance` tokens between telling and asking.

    Raises:
        ValueError: the task is unknown.
    """

    def finish(messages: list[Message], expected: str, wrong: tuple[str, ...]) -> RecallCase:
        return RecallCase(
            task=task,
            distance=distance,
            messages=tuple(messages),
            expected=expected,
            distractors=wrong,
            unseen_wording=unseen,
        )

    if task in ("facts", "syllable_names", "several", "update"):
        messages, asked, wrong = _fact_case(rng, task, unseen)
        messages += filler_turns(rng, distance, count_tokens)
        return finish([*messages, _user(asked.ask)], asked.value, wrong)
    if task == "key_value":
        pairs = key_value_lines(rng, rng.randrange(5, 9), held_out=True)
        head = rng.choice(words.UNSEEN_LISTS if unseen else words.LISTS)
        text = "\n".join([head, *(f"- {k}: {v}" for k, v in pairs.items())])
        key = rng.choice(list(pairs))
        ask = rng.choice(words.UNSEEN_ASK_VALUE if unseen else words.ASK_VALUE).format(s=key)
        expected = pairs[key]
    elif task == "variable":
        lines, worth = variable_lines(rng, rng.randrange(3, 7), held_out=True)
        text = "\n".join(lines)
        key = rng.choice(list(worth))
        ask = rng.choice(words.UNSEEN_ASK_VARIABLE if unseen else words.ASK_VARIABLE)
        ask, expected, pairs = ask.format(s=key), worth[key], worth
    elif task == "pass_key":
        expected = number(rng, True, 5)
        told = rng.choice(words.UNSEEN_PASS_KEYS if unseen else words.PASS_KEYS).format(v=expected)
        before = " ".join(filler_sentence(rng) for _ in range(rng.randrange(1, 8)))
        after, left = [], distance
        while left > 4:
            after.append(filler_sentence(rng))
            left -= count_tokens(after[-1])
        ask = rng.choice(words.UNSEEN_ASK_PASS_KEY if unseen else words.ASK_PASS_KEY)
        return finish([_user(" ".join([before, told, *after, ask]))], expected, ())
    else:
        raise ValueError(f"unknown recall task {task!r}; known: {', '.join(TASKS)}")
    messages = [_user(text), _assistant(rng.choice(words.NOTED))]
    messages += filler_turns(rng, distance, count_tokens)
    wrong = tuple(sorted({v for v in pairs.values() if v != expected}))
    return finish([*messages, _user(ask)], expected, wrong)


def approximate_tokens(text: str) -> int:
    """Return the approximate number of tokens: words, marks and single digits."""
    return len(re.findall(r"[^\W\d]+|\d|[^\w\s]", text))


def recall_cases(
    tasks: Sequence[str] = TASKS,
    distances: Sequence[int] = DISTANCES,
    count: int = 20,
    seed: int = 0,
    count_tokens: CountTokens = approximate_tokens,
) -> Iterator[RecallCase]:
    """`count` cases for every task and distance, half of them in wordings training never saw."""
    for task in tasks:
        for distance in distances:
            rng = random.Random(f"{seed}|{task}|{distance}")
            for i in range(count):
                yield make_case(rng, task, distance, count_tokens, unseen=i % 2 == 1)


def score(answer: str, case: RecallCase) -> bool:
    """Return whether the answer names the expected value and none of the wrong ones.

    A wrong value that is in the question (`What was the job of Oscar?` after a horse called Oscar)
    may be in the answer.
    """
    asked = " ".join(m["content"] for m in case.messages[-1:])

    def says(value: str, text: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None

    wrong = (v for v in case.distractors if not says(v, asked))
    return says(case.expected, answer) and not any(says(v, answer) for v in wrong)
