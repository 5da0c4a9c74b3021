"""Simple instructions and what is done: counting, listing, choosing, repeating, small sums.

Each generator returns (what the user says, what the assistant answers).
"""

from __future__ import annotations

import random

import story_words
from story_data import article

from edgetok.evaluation.recall import filler_sentence
from edgetok.evaluation.recall_patterns import NAMES, WORDS, word_list

Exchange = tuple[str, str]

_OPPOSITES = tuple(
    pair.split()
    for pair in [
        "big small",
        "hot cold",
        "happy sad",
        "up down",
        "good bad",
        "fast slow",
        "old young",
        "day night",
        "light dark",
        "long short",
        "open closed",
        "full empty",
        "hard soft",
        "loud quiet",
        "wet dry",
        "high low",
        "in out",
        "left right",
        "clean dirty",
        "strong weak",
        "early late",
        "near far",
        "black white",
        "rich poor",
        "yes no",
        "first last",
        "new old",
        "easy difficult",
        "sweet sour",
        "brave afraid",
        "over under",
        "before after",
        "inside outside",
        "always never",
        "thick thin",
    ]
)
_KINDS = {
    "animals": WORDS["animal"], "colours": WORDS["colour"], "fruits": WORDS["fruit"],
    "cities": WORDS["city"], "foods": WORDS["food"], "drinks": WORDS["drink"],
    "sports": WORDS["sport"], "jobs": WORDS["job"], "names": NAMES,
    "toys": word_list("ball doll car kite puzzle train robot bear drum blocks"),
    "days": WORDS["day"],
    "vegetables": word_list("carrots potatoes onions tomatoes peas beans corn cabbage"),
    "birds": word_list("owl duck parrot swan crow eagle robin goose"),
    "flowers": word_list("rose tulip daisy lily sunflower violet"),
    "seasons": word_list("spring summer autumn winter"),
    "months": word_list("January March April May June July August October December"),
    "clothes": word_list("hat coat shirt dress socks shoes scarf belt"),
    "pets": word_list("dog cat rabbit hamster parrot goldfish turtle"),
    "things in a house": word_list("table chair bed lamp door window sofa clock"),
    "things in a kitchen": word_list("spoon fork knife plate cup pot pan bowl"),
    "family members": word_list("mother father sister brother aunt uncle cousin"),
    "numbers": word_list("1 2 3 4 5 6 7 8 9 10 12 20"),
    "vehicles": word_list("car bus train bike truck boat plane"),
    "things to do": ("read a book", "go for a walk", "draw a picture", "bake a cake", "sing a song",
                     "call a friend", "play a game", "plant a flower"),
    "things you like": ("stories", "music", "rain", "long walks", "kind words", "cake"),
}  # fmt: skip
_SMALL = word_list("zero one two three four five six seven eight nine ten")
_WORDS = word_list(
    "apple tree river happy blue moon garden little star house cloud bread song green "
    "window mountain paper summer friend water yellow chair flower king silver table "
    "train"
)
_DOES = word_list("sings runs jumps sleeps is was has goes comes flies looks falls shines")
_TO_SORT = (
    "days",
    word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
)


def count(rng: random.Random) -> Exchange:
    """Count up, down, or between two numbers."""
    kind = rng.randrange(4)
    if kind == 0:
        n = rng.randint(3, 20)
        ask = rng.choice(("Count to {n}.", "Count from 1 to {n}.", "Can you count to {n}?",
                          "Please count up to {n}.", "Count up to {n}."))  # fmt: skip
        return ask.format(n=n), ", ".join(map(str, range(1, n + 1))) + "."
    if kind == 1:
        n = rng.randint(3, 10)
        ask = rng.choice(("Count to {n}.", "Count from one to {n}.", "Please count to {n}."))
        return ask.format(n=_SMALL[n]), ", ".join(_SMALL[1 : n + 1]) + "."
    if kind == 2:
        a = rng.randint(1, 40)
        b = a + rng.randint(3, 10)
        ask = rng.choice(("Count from {a} to {b}.", "Please count from {a} to {b}.",
                          "Can you count from {a} to {b}?", "Say the numbers from {a} to {b}.",
                          "List the numbers from {a} to {b}."))  # fmt: skip
        return ask.format(a=a, b=b), ", ".join(map(str, range(a, b + 1))) + "."
    n = rng.randint(3, 12)
    ask = rng.choice(("Count down from {n}.", "Count backwards from {n}."))
    return ask.format(n=n), ", ".join(map(str, range(n, 0, -1))) + "."


def listing(rng: random.Random) -> Exchange:
    """List some things of a kind."""
    kind = rng.choice(list(_KINDS))
    n = rng.randint(2, 5)
    ask = rng.choice(
        ("List {n} {k}.", "Name {n} {k}.", "Tell me {n} {k}.", "Give me {n} {k}.",
         "Can you list {n} {k}?", "Write a list of {n} {k}.", "I need {n} {k}.",
         "Please list {n} {k}.", "Make a list of {n} {k}.", "Can you name {n} {k}?",
         "Please name {n} {k}.", "Say {n} {k}.", "Do you know {n} {k}?",
         "Give me a list of {n} {k}.")
    )  # fmt: skip
    # In the order of the list, from anywhere: what was said already says what comes next.
    words, start = _KINDS[kind], rng.randrange(100)
    things = [words[(start + i) % len(words)] for i in range(min(n, len(words)))]
    number = rng.choice((str(n), _SMALL[n]))
    ask = ask.format(n=number, k=kind)
    if "list" in ask.lower():
        return ask, "\n".join(f"{i}. {t}" for i, t in enumerate(things, 1))
    return ask, (", ".join(things[:-1]) + " and " + things[-1] + ".")


def pick(rng: random.Random) -> Exchange:
    """Pick one of a kind, or one of those offered."""
    if rng.random() < 0.5:
        kind = rng.choice(
            ("colour", "colour", "animal", "fruit", "city", "food", "drink", "sport", "number",
             "name", "day", "color")
        )  # fmt: skip
        ask = rng.choice(("Pick a {k}.", "Choose a {k}.", "What is your favourite {k}?",
                          "Name a {k}.", "Tell me a {k}.", "Please pick a {k}.", "Say a {k}.",
                          "Think of a {k}.", "Give me a {k}.", "Can you pick a {k}?",
                          "Do you have a favourite {k}?", "Pick any {k}."))  # fmt: skip
        words = WORDS["colour"] if kind == "color" else NAMES if kind == "name" else WORDS.get(kind)
        thing = rng.choice(words) if words else str(rng.randint(1, 20))
        if "favourite" in ask:
            answer = f"My favourite {kind} is {thing}. What is your favourite {kind}?"
        else:
            answer = rng.choice(
                (f"I pick {thing}.", f"{thing.capitalize()}!", f"I choose {thing}.")
            )
        ask = ask.format(k=kind)
        return ask.replace(" a animal", " an animal"), answer
    kind = rng.choice(("colour", "animal", "fruit", "food", "drink", "sport"))
    things = rng.sample(WORDS[kind], rng.choice((2, 2, 3)))
    offered = ", ".join(things[:-1]) + " or " + things[-1]
    ask = rng.choice(("Do you prefer {o}?", "Choose: {o}?", "Pick one: {o}.", "Which one, {o}?",
                      "What do you like more, {o}?"))  # fmt: skip
    answer = rng.choice(("I like {t} more. And you?", "I choose {t}.", "I pick {t}."))
    return ask.format(o=offered), answer.format(t=rng.choice(things))


def repeat(rng: random.Random) -> Exchange:
    """Repeat a word, some words or a sentence."""
    kind = rng.randrange(3)
    if kind == 0:
        text = filler_sentence(rng)
        ask = rng.choice(("Repeat: {t}", "Repeat after me: {t}", "Please repeat this: {t}",
                          "Say this: {t}", "Say: {t}"))  # fmt: skip
        return ask.format(t=text), text
    if kind == 1:
        text = " ".join(rng.sample(_WORDS, rng.randint(1, 5)))
        if rng.random() < 0.5:
            text = f"the {rng.choice(_WORDS)} {rng.choice(_WORDS)} {rng.choice(_DOES)}"
        ask = rng.choice(("Repeat: {t}", "Say: {t}", "Repeat after me: {t}", "Say {t}.",
                          "Please repeat: {t}", "Repeat this: {t}"))  # fmt: skip
        return ask.format(t=text), text
    word, n = rng.choice(_WORDS), rng.randint(2, 5)
    ask = rng.choice(
        ("Say {w} {n} times.", "Repeat the word {w} {n} times.", "Write {w} {n} times.")
    )
    number = rng.choice((str(n), _SMALL[n]))
    return ask.format(w=word, n=number), " ".join([word] * n)


def go_on(rng: random.Random) -> Exchange:
    """Continue a sequence."""
    kind = rng.randrange(4)
    shown = rng.randint(3, 4)
    if kind == 0:
        start, by = rng.randint(1, 20), rng.choice((1, 1, 1, 2, 5, 10))
        seq = [str(start + by * i) for i in range(shown + 4)]
    elif kind == 1:
        i = rng.randrange(26 - shown - 4)
        seq = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i : i + shown + 4])
    elif kind == 2:
        days = _TO_SORT[1]
        i = rng.randrange(7)
        shown = 2
        seq = [days[(i + j) % 7] for j in range(5)]
    else:
        a, b = rng.sample(_WORDS, 2)
        seq = [a, b] * 4
    ask = rng.choice(("Continue: {s}", "Go on: {s}", "What comes next: {s}", "Continue this: {s}"))
    return ask.format(s=", ".join(seq[:shown]) + ","), ", ".join(seq[shown:]) + "."


def opposite(rng: random.Random) -> Exchange:
    """Return the opposite of a word."""
    a, b = rng.sample(rng.choice(_OPPOSITES), 2)
    ask = rng.choice(("What is the opposite of {a}?", "Tell me the opposite of {a}.",
                      "What is the opposite of the word {a}?", "{a} - what is the opposite?",
                      "Say the opposite of {a}.", "The opposite of {a}?"))  # fmt: skip
    return ask.format(a=a), f"The opposite of {a} is {b}."


def add(rng: random.Random) -> Exchange:
    """Small sums."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.35:
        a += b
        ask = rng.choice(("What is {a} minus {b}?", "What is {a} - {b}?", "How much is {a} - {b}?",
                          "{a} - {b}?", "Take {b} from {a}."))  # fmt: skip
        return ask.format(a=a, b=b), f"{a} - {b} = {a - b}."
    ask = rng.choice(("What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} + {b}?",
                      "{a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?",
                      "What do you get when you add {a} and {b}?"))  # fmt: skip
    return ask.format(a=a, b=b), f"{a} + {b} = {a + b}."


_MONTHS = word_list(
    "January February March April May June July August September October November December"
)


def neighbour(rng: random.Random) -> Exchange:
    """Return an exchange about what comes before or after a day, a month, a number or a letter."""
    series = rng.choice(
        (_TO_SORT[1], _MONTHS, [str(i) for i in range(1, 30)], list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    )
    i = rng.randrange(1, len(series) - 1)
    kind = {7: "day ", 12: "month ", 29: "number ", 26: "letter "}[len(series)]
    kind = rng.choice((kind, ""))
    if rng.random() < 0.6:
        return f"What {kind}comes after {series[i]}?", f"{series[i + 1]} comes after {series[i]}."
    return f"What {kind}comes before {series[i]}?", f"{series[i - 1]} comes before {series[i]}."


def compare(rng: random.Random) -> Exchange:
    """Return the bigger or smaller of two numbers; whether one is bigger."""
    a, b = rng.sample(range(1, 100), 2)
    way = rng.choice(("bigger", "smaller"))
    right = (max if way == "bigger" else min)(a, b)
    if rng.random() < 0.5:
        return f"Which is {way}, {a} or {b}?", f"{right} is {way}."
    yes = "Yes" if right == a else "No"
    other = b if right == a else a
    return f"Is {a} {way} than {b}?", f"{yes}, {right} is {way} than {other}."


def sentence(rng: random.Random) -> Exchange:
    """Return a sentence with a word in it."""
    noun = rng.choice(story_words.THINGS[rng.choice(list(story_words.THINGS))])
    look, colour = rng.choice(story_words.USUAL), rng.choice(story_words.COLOURS)
    ask = rng.choice(
        ("Write a sentence with the word {n}.", "Make a sentence with {n}.",
         "Use the word {n} in a sentence.", "Say a sentence about {a}.",
         "Write one sentence about {a}.")
    )  # fmt: skip
    said = rng.choice(
        ("I saw {a} in the garden.", "The {n} is {c}.", "There is {a} on the table.",
         "My friend gave me {a}.", "I would like to have {l}.", "The boy looked at the {n}.",
         "She found {l} near the river.", "Where is my {n}?")
    )  # fmt: skip
    words = {"n": noun, "a": article(noun), "c": colour, "l": article(f"{look} {noun}")}
    return ask.format_map(words), said.format_map(words)


_POEMS = (
    ("The {n} is here, the day is new,", "the grass is green, the sky is blue."),
    ("I saw {an} upon the hill,", "the wind was soft, the world was still."),
    ("Oh little {n}, so far away,", "come back and stay with me today."),
    ("The sun goes down, the moon is bright,", "the {n} says to all: good night!"),
    ("I found {an} beside the sea,", "and it was kind and smiled at me."),
    ("The rain comes down, it will not stop,", "the {n} is wet from foot to top."),
    ("The stars are out, the night is long,", "the {n} sings a quiet song."),
    ("I like the {n}, I like the tree,", "I like the bird that sings to me."),
    ("The {n} went out to see the snow,", "it danced and jumped, and off we go!"),
    ("My friend the {n} is never sad,", "it laughs with me, and I am glad."),
)
_ASK_POEM = (
    "Write a poem about {x}.", "Write a short poem about {x}.", "A poem about {x}, please.",
    "Can you write a poem about {x}?", "Tell me a poem about {x}.", "Make a little poem about {x}.",
    "I would like a poem about {x}.",
)  # fmt: skip


def poem(rng: random.Random) -> Exchange:
    """Return a request for a poem about a noun, and two rhyming pairs of lines."""
    noun = rng.choice(
        (*story_words.ANIMALS, *story_words.THINGS["any"], *story_words.THINGS["toy"])
    )
    with_article = article(noun)
    ask = rng.choice(_ASK_POEM).format(x=rng.choice((with_article, "the " + noun)))
    lines = [line for pair in rng.sample(_POEMS, 2) for line in pair]
    text = "\n".join(line.format(n=noun, an=with_article) for line in lines)
    return ask, "\n".join(t[0].upper() + t[1:] for t in text.split("\n"))
