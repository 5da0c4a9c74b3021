"""Small talk: exchanges and whole conversations, with simple instructions among them.

One user text in ten, by hash, is for evaluation only.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import instruction_data as do
import recall_wordings
import talk_tables as t
from instruction_data import Exchange
from recall_data import LOOKUP, SAID, Turn, user
from story_data import article
from value_data import GIVEN

from edgetok.evaluation.recall import is_held_out, make_fact, number, syllable_name
from edgetok.evaluation.recall_patterns import NAMES, NOTED, PATTERNS, WORDS

# As in the recall cases: a user with one of the other names is for evaluation.
_NAMES = tuple(n for n in (*NAMES, *GIVEN) if not is_held_out("name", n))
_ABOUT_IT = frozenset(ask for asks, _ in (*t.IDENTITY, *t.ABILITY) for ask in asks)
_GREET = (
    "Hello", "Hi", "Hey", "Hello there", "Hi there", "Hey there", "Good morning", "Good evening",
    "Good afternoon", "Greetings", "Hello, how are you", "Hi, how are you", "Hey, how is it going",
    "Good morning, how are you today", "How are you", "How are you doing", "How is your day",
    "Hello edgetok", "Hi edgetok", "Hello my friend", "Hi friend", "How are you today",
    "Hello! How are you", "Hi! How are you today", "What's up", "How is it going", "Howdy",
)  # fmt: skip
_GREET_BACK = ("Hello!", "Hi!", "Hi there!", "Hello there!", "Hey!")
_FINE = ("I am fine, thank you.", "I am very well today.", "I feel good, thank you.")
_ASK_BACK = (
    "How are you?", "How are you today?", "What can I do for you?", "What would you like to talk "
    "about?", "Would you like to hear a story?", "What did you do today?", "How can I help you?",
    "What is your name?",
)  # fmt: skip
_BYE = ("Goodbye", "Bye", "Bye bye", "See you", "See you soon", "Good night", "I have to go now",
        "I must go", "That is all, bye", "Talk to you later", "I am leaving now", "Say goodbye",
        "See you tomorrow", "I go to bed now", "I need to go")  # fmt: skip
_BYE_BACK = ("Goodbye! It was nice to talk to you.", "Bye! See you soon.", "Goodbye! Have a nice "
             "day.", "Good night! Sleep well.", "See you soon! Take care.")  # fmt: skip
_THANKS = ("Thank you", "Thanks", "Thanks a lot", "Thank you very much", "That was nice, thank you",
           "Great, thanks", "Thank you for your help")  # fmt: skip
_THANKS_BACK = ("You're welcome!", "You're welcome! I am happy to help.", "My pleasure! Is there "
                "anything else?", "You're welcome! What shall we do next?")  # fmt: skip
_ASKING = frozenset(
    [
        "who",
        "what",
        "what's",
        "how",
        "where",
        "can",
        "do",
        "is",
        "when",
        "why",
        "will",
        "would",
        "may",
        "are",
        "which",
        "whose",
        "am",
        "could",
        "should",
        "did",
        "does",
    ]
)


def _marked(rng: random.Random, ask: str) -> str:
    """Add an end mark if there is none."""
    if ask[-1] in ".!?":
        return ask
    if ask.split()[0].lower() in _ASKING or ask.split(", ")[-1].split()[0].lower() in _ASKING:
        return ask + "?"
    return ask + rng.choice("..!")


def _talk(rng: random.Random, table: t.Table) -> Exchange:
    asks, answers = rng.choice(table)
    return _marked(rng, rng.choice(asks)), rng.choice(answers)


def greet(rng: random.Random) -> Exchange:
    """Greets and asks back."""
    ask = rng.choice(_GREET)
    how = "how" in ask.lower() or "up" in ask
    answer = f"{rng.choice(_GREET_BACK)} "
    if how:
        answer += rng.choice(_FINE) + " "
        back = rng.choice(("How are you?", "And you?", "What about you?"))
    else:
        back = rng.choice(_ASK_BACK)
    return ask + ("?" if how else rng.choice("!.")), answer + back


def introduce(rng: random.Random) -> Exchange:
    """Somebody says a name."""
    name = rng.choice(_NAMES) if rng.random() < 0.6 else syllable_name(rng, False)
    said = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}!",
                       "Hi! My name is {n}.", "Hello! I am {n}.", "I am called {n}.",
                       "You can call me {n}.", "Hello, my name is {n}."))  # fmt: skip
    back = rng.choice(("Nice to meet you, {n}!", "Hello {n}! How are you?", "Hi {n}! It is nice "
                       "to meet you. What would you like to do?", "Hello {n}! I am edgetok.",
                       "Nice to meet you, {n}! My name is edgetok."))  # fmt: skip
    return said.format(n=name), back.format(n=name)


def likes(rng: random.Random) -> Exchange:
    """Return an exchange in which the user tells a liking and the assistant asks back."""
    kind = rng.choice(("fruit", "animal", "food", "sport", "drink", "city"))
    thing = rng.choice(WORDS[kind])
    plain = kind in ("animal", "fruit") and not thing.endswith(
        ("x", "y", "mouse", "mango", "peach")
    )
    many = thing + "s" if plain else thing
    said = rng.choice(("I like {t}.", "I love {t}.", "I really like {t}.", "I do not like {t}."))
    if "not" in said:
        back = rng.choice(("Why do you not like {t}?", "Oh, what do you like more than {t}?"))
    else:
        back = rng.choice(("I like {t} too! What else do you like?", "{T}, how nice! Why do you "
                           "like {t}?", "That is nice. What do you like about {t}?"))  # fmt: skip
    return said.format(t=many), back.format(t=many, T=many[0].upper() + many[1:])


def creature(rng: random.Random) -> Exchange:
    """Return a question about an animal."""
    name, where, eats, says, legs, what = rng.choice(t.CREATURES)
    a = article(name)
    kind = rng.randrange(5)
    if kind == 0 and says != "nothing":
        asks = ("What does {a} say?", "What sound does {a} make?", "What noise does {a} make?")
        answer = f"{a} says {says}."
    elif kind == 1:
        asks = ("Where does {a} live?", "Where do I find {a}?", "Where can {a} live?")
        answer = f"{a} lives {where}."
    elif kind == 2:
        asks = ("What does {a} eat?", "What food does {a} like?", "What can I give {a} to eat?")
        answer = f"{a} eats {eats}."
    elif kind == 3:
        asks = ("How many legs does {a} have?", "How many legs has {a}?")
        answer = f"{a} has {legs} legs."
    else:
        asks = ("What is {a}?", "Tell me about {a}.", "Tell me something about {a}.",
                "What do you know about {a}?")  # fmt: skip
        answer = f"{a} is {what}. It lives {where} and eats {eats}."
    return rng.choice(asks).format(a=a), answer[0].upper() + answer[1:]


def _filled(rng: random.Random, asks: tuple[str, ...]) -> str:
    words = {"c": t.COUNTRIES, "x": t.INVENTIONS, "s": t.SCIENCES}
    return rng.choice(asks).format_map({k: rng.choice(v) for k, v in words.items()})


def too_hard(rng: random.Random) -> Exchange:
    """Something that the model cannot know or do, and its honest answer."""
    roll = rng.random()
    if roll < 0.5:
        return _marked(rng, _filled(rng, t.HARD)), rng.choice(t.HARD_ANSWERS)
    if roll < 0.85:
        return _marked(rng, _filled(rng, t.CANNOT)), rng.choice(t.CANNOT_ANSWERS)
    a, b = number(rng, False), number(rng, False)
    ask = rng.choice(("What is {a} times {b}?", "What is {a} + {b}?", "What is {a} * {b}?",
                      "How much is {a} divided by {b}?", "What is {a} minus {b}?"))  # fmt: skip
    return ask.format(a=a, b=b), "That is too hard for me. I can only do small sums."


def not_told(rng: random.Random) -> Exchange:
    """Return a question about something that the user never told."""
    pattern = rng.choice(("self", "self", *PATTERNS))
    pattern, subject = make_fact(rng, pattern).slot.split("|")
    answer = recall_wordings.not_told(pattern, subject)
    return recall_wordings.question(rng, pattern, subject), answer


_MAKERS: tuple[tuple[Callable[[random.Random], Exchange], float], ...] = (
    (greet, 1.2),
    (introduce, 0.5),
    (lambda r: _talk(r, t.IDENTITY), 2.5),
    (lambda r: _talk(r, t.ABILITY), 1.2),
    (lambda r: _talk(r, t.FEEL), 2.2),
    (lambda r: _talk(r, t.KNOW), 2.0),
    (creature, 1.2),
    (too_hard, 1.2),
    (do.count, 1.0),
    (do.listing, 2.0),
    (do.pick, 1.0),
    (do.repeat, 2.0),
    (do.go_on, 0.8),
    (do.opposite, 0.5),
    (do.add, 2.0),
    (do.neighbour, 0.5),
    (do.compare, 0.4),
    (do.sentence, 0.5),
    (do.poem, 0.5),
    (likes, 0.8),
    (lambda r: (rng_mark(r, _THANKS), r.choice(_THANKS_BACK)), 0.5),
)


_DRILLED: tuple[tuple[Callable[[random.Random], Exchange], int], ...] = (
    (do.add, 6),
    (do.count, 1),
    (do.listing, 2),
    (do.neighbour, 1),
    (do.opposite, 1),
    (do.repeat, 1),
    (creature, 1),
    (lambda r: _talk(r, t.KNOW), 1),
    (lambda r: _talk(r, t.IDENTITY), 2),
    (too_hard, 1),
)


def drill(rng: random.Random) -> Exchange:
    """Return an exchange of those that need many repetitions."""
    while True:
        ask, answer = rng.choices([m for m, _ in _DRILLED], [n for _, n in _DRILLED])[0](rng)
        if not is_held_out("chat", ask) or ask.rstrip("?.!") in _ABOUT_IT:
            return loosely(rng, ask), answer


def rng_mark(rng: random.Random, texts: tuple[str, ...]) -> str:
    """Return one of the texts with an end mark."""
    return rng.choice(texts) + rng.choice(".!")


def exchange(rng: random.Random, held_out: bool = False) -> Exchange:
    """Return one exchange of any kind, on one side of the split."""
    make = rng.choices([m for m, _ in _MAKERS], [w for _, w in _MAKERS])[0]
    for _ in range(40):
        ask, answer = make(rng)
        # Who it is must not depend on how it is asked: nothing of that is kept aside.
        if is_held_out("chat", ask) == held_out or ask.rstrip("?.!") in _ABOUT_IT:
            return loosely(rng, ask), answer
    return exchange(rng, held_out)


def loosely(rng: random.Random, ask: str) -> str:
    """Write as people type: now and then without capital or end mark."""
    if rng.random() < 0.15 and ask[-1] in ".!?":
        ask = ask[:-1]
    if rng.random() < 0.15 and not ask.startswith("I "):
        ask = ask[0].lower() + ask[1:]
    return ask


def turns_of(pair: Exchange, mark: str = SAID) -> list[Turn]:
    """Return an exchange as two turns."""
    return [user(pair[0]), Turn("assistant", pair[1], mark)]


def acquaintance(rng: random.Random) -> list[Turn]:
    """Names: who is who, asked before and after they are told."""
    turns: list[Turn] = []
    mine = rng.choice(_NAMES) if rng.random() < 0.4 else syllable_name(rng, False)
    yours = [lambda: turns_of(_talk(rng, t.IDENTITY[:2])) for _ in range(rng.randint(1, 2))]
    ask_mine = lambda: loosely(rng, recall_wordings.question(rng, "self", "name"))  # noqa: E731
    if rng.random() < 0.5:
        answer = rng.choice(("You have not told me your name yet.", "You have not told me your "
                             "name yet. What is your name?"))  # fmt: skip
        turns += [user(ask_mine()), Turn("assistant", answer, LOOKUP)]
    if rng.random() < 0.5:
        turns += yours.pop()()
    if rng.random() < 0.4:
        said = rng.choice(("{n}", "{n}.", "I am {n}.", "My name is {n}.", "It is {n}."))
        turns += [
            user(rng.choice(("Hello!", "Hi.", "Hey there!"))),
            Turn("assistant", rng.choice(_GREET_BACK) + " What is your name?", SAID),
            user(said.format(n=mine)),
            Turn("assistant", f"Nice to meet you, {mine}!", LOOKUP),
        ]
    else:
        said = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "My name is {n}. "
                           "What is your name?", "I am {n}, who are you?"))  # fmt: skip
        me = " My name is edgetok." if "?" in said else ""
        turns += turns_of((said.format(n=mine), f"Nice to meet you, {mine}!{me}"), LOOKUP)
    for _ in range(rng.randint(0, 2)):
        turns += turns_of(exchange(rng))
    asks = [*yours, lambda: [user(ask_mine()), Turn("assistant", f"Your name is {mine}.", LOOKUP)]]
    rng.shuffle(asks)
    for ask in asks:
        turns += ask()
    return turns


_TAKEN = (
    "{v} is a nice name!", "{v}, I will remember that.", "What a nice name, {v}!",
    "I will remember {v}.",
)  # fmt: skip


def memories(rng: random.Random) -> list[Turn]:
    """Return a talk that tells one to four things and asks for them, small talk between."""
    turns: list[Turn] = []
    known: dict[str, str] = {}
    for _ in range(rng.randint(1, 4)):
        pattern = rng.choice(("people", "pets", "people", "pets", *PATTERNS))
        fact = make_fact(rng, pattern, invented=rng.random() < 0.5)
        if fact.slot in known or fact.value in " ".join(known.values()):
            continue
        if rng.random() < 0.5:
            fact = recall_wordings.retold(rng, fact, changed=False)
        known[fact.slot] = fact.answer
        reply = rng.choice(NOTED)
        if pattern in ("people", "pets", "owners") and rng.random() < 0.6:
            reply = rng.choice(_TAKEN).format(v=fact.value)
        turns += turns_of((fact.tell, reply))
        for _ in range(rng.choice((0, 0, 1, 2))):
            turns += turns_of(exchange(rng))
    for slot in rng.sample(list(known), len(known)):
        ask = recall_wordings.question(rng, *slot.split("|"))
        turns += turns_of((ask, known[slot]), LOOKUP)
    slot = make_fact(rng, rng.choice(tuple(PATTERNS))).slot
    if slot not in known and rng.random() < 0.5:
        ask = recall_wordings.question(rng, *slot.split("|"))
        turns += turns_of((ask, recall_wordings.not_told(*slot.split("|"))), LOOKUP)
    return turns


def favourite(rng: random.Random) -> list[Turn]:
    """Return a talk in which the assistant asks for a favourite and recalls it later."""
    kind = rng.choice(("colour", "city", "fruit", "animal", "food", "sport", "drink"))
    thing = rng.choice([v for v in WORDS[kind] if not is_held_out(kind, v)])
    begin = rng.choice(("Ask me something.", "Let us talk.", "Ask me a question.", "Let's chat."))
    said = rng.choice(("{v}", "{v}.", "It is {v}.", "I like {v}.", "My favourite {k} is {v}.",
                       "I think {v}.", "{v}, I think."))  # fmt: skip
    nice = rng.choice(("{V}, that is a good choice!", "{V} is nice!", "Oh, I like {v} too!"))
    words = {"v": thing, "V": thing[0].upper() + thing[1:], "k": kind}
    turns = [
        *turns_of((begin, f"What is your favourite {kind}?")),
        *turns_of((said.format_map(words), nice.format_map(words)), LOOKUP),
    ]
    for _ in range(rng.randint(0, 3)):
        turns += turns_of(exchange(rng))
    ask = recall_wordings.question(rng, "favourites", kind)
    return [*turns, *turns_of((ask, f"Your favourite {kind} is {thing}."), LOOKUP)]


def greeting(rng: random.Random) -> list[Turn]:
    """Return a beginning of a conversation."""
    return turns_of(greet(rng) if rng.random() < 0.6 else introduce(rng))


def farewell(rng: random.Random) -> list[Turn]:
    """Return an end of a conversation."""
    return turns_of((rng_mark(rng, _BYE), rng.choice(_BYE_BACK)))
