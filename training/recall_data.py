"""Training data for recall: many questions a sequence, so that most of the loss is looking up.

Everything is drawn from the training side of the split in `edgetok.evaluation.recall`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import recall_wordings
import value_data

from edgetok.evaluation import recall
from edgetok.evaluation import recall_patterns as words

# Weight marks: an answer that has to be looked up, anything else the assistant says, the rest.
LOOKUP, SAID, READ = "lookup", "said", "read"


class Turn(NamedTuple):
    """One message, with what its tokens are worth to training."""

    role: str
    content: str
    mark: str


_KEYS = ("door key", "red key", "blue key", "secret key", "old key", "second key", "key of the "
         "house", "ticket number", "secret number", "magic number", "gate code", "last code",
         "number of the day", "answer")  # fmt: skip
_SHORT = ("What is {s}?", "{s}?", "And {s}?")


def user(text: str) -> Turn:
    """Return a turn of the user, which has no weight in the loss."""
    return Turn("user", text, READ)


def looked_up(text: str) -> Turn:
    """Return the turn of an answer found earlier in the conversation, or that it is not there."""
    return Turn("assistant", text, LOOKUP)


def _noted(rng: random.Random) -> Turn:
    return Turn("assistant", rng.choice(words.NOTED), SAID)


def filler(rng: random.Random, sentences: int) -> str:
    """Plain sentences without facts."""
    return " ".join(recall.filler_sentence(rng) for _ in range(sentences))


FillerTurns = Callable[[random.Random], list[Turn]]


def plain_filler_turns(rng: random.Random) -> list[Turn]:
    """Return a turn of chatter and an answer of one to nine plain sentences."""
    text = filler(rng, rng.choice((1, 2, 3, 5, 9)))
    return [user(rng.choice(words.CHATTER)), Turn("assistant", text, READ)]


def _filled(
    rng: random.Random, tokens: int, count: Callable[[str], int], filler_turns: FillerTurns
) -> list[Turn]:
    """Filler of at most `tokens` tokens: what is too long is cut after a sentence."""
    turns: list[Turn] = []
    while tokens > 24:
        for turn in filler_turns(rng):
            tokens -= 5
            kept = ""
            for sentence in turn.content.replace("\n", " ").split(". "):
                tokens -= count(" " + sentence)
                if kept and tokens < 0:
                    break
                kept += (". " if kept else "") + sentence
            turns.append(turn._replace(content=kept if kept[-1:] in '.!?"' else kept + "."))
    return turns


def facts(
    rng: random.Random,
    budget: int,
    count: Callable[[str], int],
    filler_turns: FillerTurns = plain_filler_turns,
    span: float = 0.0,
) -> list[Turn]:
    """Return a dialogue that tells, changes and asks facts in random order, within `budget` tokens.

    Args:
        rng: source of randomness.
        budget: stop when this many tokens are spent.
        count: tokens of a text.
        filler_turns: what is said in between.
        span: share of the budget that is filled between telling and asking.
    """
    invented = rng.choice((0.2, 0.7, 1.0))
    kinds = (*words.PATTERNS, "self", "self")
    # Subjects that share a word with each other: the whole subject has to be looked at.
    alike: list[str] = []
    roll = rng.random()
    if roll < 0.4:
        kinds = (rng.choice(kinds),)
    elif roll < 0.5:
        kinds = ("owners",)
        names, pets = (
            rng.sample(words.NAMES[:32], 3),
            rng.sample(words.PATTERNS["pets"].subjects, 3),
        )
        alike = [f"{n}'s {p}" for n in names for p in pets]
    elif invented == 1.0:
        kinds = ("people", "pets", "owners")
    odd = rng.choice((0.0, 0.4, 0.8, 1.0))
    limit = rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 24, 32)[: 2 + budget // 70])
    if budget > 700:  # a long row with few questions teaches little
        limit = max(limit, rng.choice((4, 12, 20)))
    chatter = rng.choice((0.0, 0.0, 0.1, 0.3))
    change = rng.choice((0.0, 0.3, 0.5, 0.6))
    reworded = rng.choice((0.0, 0.5, 0.8))
    value_first = rng.choice((0.0, 0.4, 0.9))  # the harder order: the value before its subject
    nothing = rng.choice((0.0, 0.0, 0.1))  # questions about what nobody told
    again = rng.random() < 0.3  # facts may change more than once
    known: dict[str, recall.Fact] = {}
    renewed: set[str] = set()
    asked: list[recall.Fact] = []
    turns: list[Turn] = []
    spent = 0

    def say(*new: Turn) -> None:
        nonlocal spent
        turns.extend(new)
        spent += sum(count(t.content) + 5 for t in new)

    def tell() -> recall.Fact:
        for attempt in range(20):
            once = [slot for slot in known if slot not in renewed]
            if known and rng.random() < change and (once or again):
                pattern, subject = rng.choice(once or list(known)).split("|")
            else:
                pattern = rng.choice(kinds)
                usual = words.PATTERNS[pattern].subjects
                subject = rng.choice(alike or usual)
                if rng.random() < odd and not alike:
                    subject = value_data.subject(rng, pattern, usual)
                if f"{pattern}|{subject}" in known and attempt < 19:
                    continue
            changed = f"{pattern}|{subject}" in known
            if changed:
                renewed.add(f"{pattern}|{subject}")
            told = [f.value for f in known.values()]
            # A subject that is alone of its kind would have a few usual values.
            other = rng.random() < (max(odd, 0.8) if pattern == "self" else odd)
            other = other or subject not in words.PATTERNS[pattern].subjects
            kind = words.PATTERNS[pattern].value.format(s=subject)
            fact = recall.make_fact(
                rng,
                pattern,
                subject=subject,
                changed=changed,
                invented=rng.random() < invented,
                value=value_data.draw(rng, kind, subject, told) if other else "",
            )
            if fact.value not in told:
                break
        if rng.random() < value_first:
            fact = recall_wordings.retold(rng, fact, changed, value_first=True)
        elif rng.random() < (max(reworded, 0.7) if pattern == "self" else reworded):
            fact = recall_wordings.retold(rng, fact, changed)
        known[fact.slot] = fact
        return fact

    say(user(tell().tell), _noted(rng))
    while (
        len(known) < limit and rng.random() < (0.8 if limit < 9 else 0.95) and spent < budget * 0.6
    ):
        group = [tell() for _ in range(rng.choice((1, 1, 2, 3)))]
        told = " ".join(f.tell for f in group)
        if rng.random() < 0.1:
            asked.append(group[-1])
            ask = recall_wordings.question(rng, *group[-1].slot.split("|"))
            say(user(f"{told} {ask}"), looked_up(group[-1].answer))
        else:
            say(user(told), _noted(rng))
    # Questions need room whatever stands before them.
    room = max(0, budget - spent - 28 * min(len(known), 14))
    say(*_filled(rng, int(span * room), count, filler_turns))
    while spent < budget:
        roll = rng.random()
        if roll < chatter:
            say(*_filled(rng, min(150, int(0.4 * (budget - spent))), count, filler_turns))
            chatter *= 0.7
        elif roll < chatter + 0.2 and (len(known) < limit or change):
            say(user(tell().tell), _noted(rng))
        else:
            fresh = [s for s in known if known[s] not in asked]
            if not fresh and rng.random() < 0.6:
                break  # asking again mostly copies the last answer: little to learn
            slot = rng.choice(fresh or list(known))
            fact = known[slot]
            asked.append(fact)
            say(user(recall_wordings.question(rng, *slot.split("|"))), looked_up(fact.answer))
            if rng.random() < nothing:
                slot = recall.make_fact(rng, rng.choice(tuple(words.PATTERNS))).slot
                if slot not in known:
                    ask = recall_wordings.question(rng, *slot.split("|"))
                    say(user(ask), looked_up(recall_wordings.not_told(*slot.split("|"))))
    return turns


def drawer(rng: random.Random) -> Callable[[str], str] | None:
    """Return a function that draws values for a list, some of them similar; None: usual ones."""
    if rng.random() < 0.3:
        return None
    known: list[str] = []
    keys: list[str] = []

    def draw(kind: str) -> str:
        if kind == "key":
            keys.append(value_data.draw(rng, "name", known=keys).lower().replace(" ", ""))
            return keys[-1]
        known.append(value_data.draw(rng, kind, known=known))
        return known[-1]

    return draw


def assignments(rng: random.Random, count: int) -> tuple[list[str], dict[str, str]]:
    """Lines such as `x = 42` and `y = x`, and what each name is worth."""
    return recall.variable_lines(rng, count, False, drawer(rng), rng.choice((0.4, 0.7)))


def quiz(
    rng: random.Random,
    budget: int,
    count: Callable[[str], int],
    filler_turns: FillerTurns = plain_filler_turns,
    span: float = 0.0,
) -> list[Turn]:
    """Return a key-value list or assignments, then question after question about it."""
    if rng.random() < 0.45:
        most = max(3, min(9, budget // 20))
        lines, worth = assignments(rng, rng.randrange(2, most))
        text = "\n".join(lines)
        asks, answer = words.ASK_VARIABLE, "{s} is {v}."
    else:
        most = max(3, min(20, budget // 30))
        worth = recall.key_value_lines(rng, rng.randrange(2, most + 1), False, drawer(rng))
        head = rng.choice(words.LISTS)
        text = "\n".join([head, *(f"- {k}: {v}" for k, v in worth.items())])
        asks, answer = words.ASK_VALUE, "The value of {s} is {v}."
        if rng.random() < 0.5:
            asks = _SHORT
    turns = [user(text), _noted(rng)]
    spent = count(text) + 16
    room = max(0, budget - spent - 20 * min(len(worth), 12))
    new = _filled(rng, int(span * room), count, filler_turns)
    turns += new
    spent += sum(count(t.content) + 5 for t in new)
    keys = rng.sample(list(worth), len(worth))
    if rng.random() < 0.2:
        keys += keys
    while spent < budget and keys:
        key = keys.pop()
        ask = rng.choice(asks).format(s=key)
        said = answer.format(s=key, v=worth[key])
        turns += [user(ask), looked_up(said)]
        spent += count(ask) + count(said) + 10
    return turns


def pass_key(
    rng: random.Random,
    budget: int,
    count: Callable[[str], int],
    filler_turns: FillerTurns = plain_filler_turns,
    span: float = 0.0,
) -> list[Turn]:
    """Pass keys and other keys somewhere in a long message, asked after it.

    One answer in a thousand tokens teaches little: mostly there are several keys.
    """
    names = ["pass key", *rng.sample(_KEYS, len(_KEYS))]
    keys: dict[str, str] = {}
    asked = rng.sample(names[:7], rng.choice((1, 2, 4, 6))) if rng.random() < 0.8 else names[:1]
    for name in asked:
        draw = value_data.draw(rng, "number", known=list(keys.values()))
        value = recall.number(rng, False, 5) if rng.random() < 0.4 else draw
        if value not in keys.values():
            keys[name] = value
    told = [rng.choice(words.PASS_KEYS).replace("pass key", k).format(v=keys[k]) for k in keys]
    asks = [rng.choice(words.ASK_PASS_KEY).replace("pass key", k) for k in keys]
    left = budget - sum(count(t) + 30 for t in told) - 24
    sentences = []
    while left > 0:
        sentences.append(recall.filler_sentence(rng))
        left -= count(sentences[-1])
    for text in told:
        where = rng.randrange(len(sentences) + 1) if span < 0.5 else rng.randrange(8)
        sentences.insert(where, text)
    turns: list[Turn] = []
    order = rng.sample(range(len(asks)), len(asks))
    for i, name in [(i, list(keys)[i]) for i in order]:
        ask = asks[i] if turns else " ".join([*sentences, asks[i]])
        turns += [user(ask), looked_up(f"The {name} is {keys[name]}.")]
    return turns


def conversation(
    rng: random.Random,
    budget: int,
    count: Callable[[str], int],
    filler_turns: FillerTurns = plain_filler_turns,
    span: float = 0.0,
) -> list[Turn]:
    """Return one recall conversation of any kind."""
    make = rng.choices((facts, quiz, pass_key), (0.6, 0.3, 0.1))[0]
    return make(rng, budget, count, filler_turns, span)
