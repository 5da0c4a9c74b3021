"""Invented stories that stay on their subject, with requests, questions and continuations.

A story is a plot (`story_plots.py`) with a hero, a friend, a thing and a place drawn for it. Real
stories of this size are too few to learn how to keep to what was asked; these are never twice the
same. By hash, one kind of hero, one thing and one plot in ten are for evaluation only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import story_words as w
from recall_data import LOOKUP, SAID, Turn, user
from story_plots import ENDINGS, OPENINGS, PLOTS, TRAITS, WEATHER, Plot
from story_plots_more import MORE_PLOTS

from edgetok.evaluation.recall import is_held_out, syllable_name

ALL_PLOTS = (*PLOTS, *MORE_PLOTS)
_GROWN = frozenset(kind for kind, _ in w.ADULTS)
USUAL_NAMES = frozenset((*w.GIRLS, *w.BOYS))
USUAL_NOUNS = frozenset(noun for nouns in w.THINGS.values() for noun in nouns)
_PRONOUNS = {"m": ("he", "him", "his"), "f": ("she", "her", "her")}


@cache
def _kept(part: str, name: str) -> bool:
    return is_held_out("tale " + part, name)


def article(words: str) -> str:
    """`a` or `an` before the words; nothing before what is not counted."""
    if words.split()[-1] in w.MASS:
        return words
    an = words[0] in "aeiou" and not words.startswith(("uni", "use", "one"))
    return ("an " if an else "a ") + words


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A story and what there is to know about it: `know` fills in requests and questions."""

    plot: Plot
    know: dict[str, str]
    sentences: tuple[str, ...]
    lesson: str

    def text(self, begin: int = 0) -> str:
        """Return the steps from `begin` on, in paragraphs."""
        parts = self.sentences[begin:]
        third = max(2, -(-len(parts) // 3))
        return "\n".join(" ".join(parts[i : i + third]) for i in range(0, len(parts), third))

    @property
    def title(self) -> str:
        """`The Fox and the Lantern`."""
        return f"The {self.know['k'].title()} and the {self.know['n'].title()}"


def _who(rng: random.Random, allowed: Callable[[str], bool]) -> tuple[str, str]:
    """Return a kind and a sex."""
    while True:
        roll = rng.random()
        if roll < 0.25:
            kind, sex = rng.choice(w.CHILDREN[: 2 if rng.random() < 0.7 else 4])
        elif roll < 0.8:
            kind, sex = rng.choice(w.ANIMALS), rng.choice("mf")
        elif roll < 0.9:
            kind, sex = rng.choice(w.FANTASY), rng.choice("mf")
        else:
            kind, sex = rng.choice(w.ADULTS)
        if kind in ("girl", "boy") or allowed(kind):
            return kind, sex


def _name(rng: random.Random, sex: str, held_out: bool, strange: bool, friend: int = 0) -> str:
    names = w.BOYS if sex == "m" else w.GIRLS
    if strange:
        return syllable_name(rng, held_out) if rng.random() < 0.5 else rng.choice(names)
    return rng.choice(names[friend::2])  # a friend is never called as a hero is


def _pick(rng: random.Random, line: str, kind: str) -> str:
    """Return one way to say a step; `A =food= B` is A of food and B of anything else."""
    way = rng.choice(line.lstrip("?").split(" | "))
    if match := re.match(r"(.*) =(\w+)= (.*)", way):
        way = match.group(1) if kind == match.group(2) else match.group(3)
    return way


def invent(
    rng: random.Random, held_out: bool = False, length: str = "", strange: bool = False
) -> Story:
    """Draw a story.

    Args:
        rng: source of randomness.
        held_out: the hero's kind, the thing or the plot is one that training never uses.
        length: short, long, or either when empty.
        strange: names and things that nobody knows are allowed; the request has to say them, for
            they can only be copied.
    """
    test = rng.choice(("hero", "thing", "plot")) if held_out else ""

    def free(part: str) -> Callable[[str], bool]:
        if held_out:
            return lambda name: part != test or _kept(part, name)
        return lambda name: not _kept(part, name)

    plots: list[Plot] = []
    while not plots:
        hero, sex = _who(rng, free("hero"))
        plots = [p for p in ALL_PLOTS if free("plot")(p.name) and not (p.home and hero in _GROWN)]
    open_plots = [p for p in plots if "any" in p.things]
    nouns: list[str] = []
    while not nouns:
        if open_plots and rng.random() < 0.25:
            plot, category = rng.choice(open_plots), "any"
        else:
            # A kind of hero is often in the same plot: then even the likeliest stories differ.
            own = random.Random(hero).choice(plots)
            plot = own if rng.random() < 0.6 else rng.choice(plots)
            category = rng.choice(plot.things)
        nouns = [n for n in w.THINGS[category] if free("thing")(n)]
        if strange and category == "any" and not test and rng.random() < 0.4:
            nouns = [syllable_name(rng, False).lower()]
    friend, friend_sex = _who(rng, free("friend") if held_out else free("hero"))
    name = _name(rng, sex, held_out, strange)
    friend_name = name
    while friend_name == name or friend == hero:
        friend, friend_sex = _who(rng, free("friend") if held_out else free("hero"))
        friend_name = _name(rng, friend_sex, held_out, strange, 1)
    noun = rng.choice(nouns)
    look = rng.choice(w.LOOKS.get(category, w.USUAL))
    place, in_place, to_place = rng.choice(w.PLACES)
    parent, parent_sex = rng.choice(w.PARENTS)
    hobby, doing = rng.choice(w.HOBBIES)
    adjective = rng.choice([a for a in w.ADJECTIVES if (a, hero) != ("small", "giant")])
    he, him, his = _PRONOUNS[sex]
    know = {
        "H": name, "k": hero, "ak": article(f"{adjective} {hero}"), "he": he, "him": him,
        "his": his, "He": he.capitalize(), "His": his.capitalize(),
        "F": friend_name, "fk": friend, "afk": article(friend),
        "Fi": f"{article(friend)} named {friend_name}", "n": noun, "t": f"{look} {noun}",
        "at": article(f"{look} {noun}"), "an": article(noun), "adj": look,
        "AT": article(f"{look} {noun}").capitalize(), "p": place, "inp": in_place,
        "top": to_place, "M": parent, "Mhe": _PRONOUNS[parent_sex][0],
        "Mhim": _PRONOUNS[parent_sex][1], "spot": rng.choice(w.SPOTS), "skill": hobby,
        "doing": doing, "skill2": rng.choice(w.SKILLS), "mood": rng.choice(w.MOODS),
        "col": rng.choice(w.COLOURS), "col2": rng.choice(w.COLOURS),
    }  # fmt: skip
    know |= dict(zip(("fhe", "fhim", "fhis"), _PRONOUNS[friend_sex], strict=True))
    know["Fhe"] = know["fhe"].capitalize()
    know["acol"] = article(know["col"])
    if look in w.COLOURS:
        know["col2"] = look
    lesson = rng.choice(plot.lesson)
    size = length or rng.choice(("short", "middle", "middle", "long"))
    lines = [rng.choice(OPENINGS)]
    traits = [t for t in TRAITS if "{M}" not in t or plot.home]
    lines += rng.sample(traits, {"short": 0, "middle": 1, "long": 2}[size])
    if size == "long" or (size == "middle" and rng.random() < 0.3):
        lines.append(rng.choice(WEATHER))
    for step in plot.steps.strip().split("\n"):
        if not step.startswith("?") or rng.random() < {"short": 0, "middle": 0.6, "long": 1}[size]:
            lines.append(_pick(rng, step, category))
    if rng.random() < 0.6:
        lines.append("{H} learned that " + lesson + ".")
    if size != "short" or rng.random() < 0.4:
        lines.append(rng.choice(ENDINGS))
    sentences = []
    for line in lines:
        text = line.format_map(know)
        sentences.append(text[0].upper() + text[1:])
    if not any(re.search(rf"\b{noun}", s, re.IGNORECASE) for s in sentences):
        return invent(rng, held_out, length, strange)  # who asks for the thing wants to read of it
    return Story(plot=plot, know=know, sentences=tuple(sentences), lesson=lesson)


_ASK = (
    "Tell me a {size}story about {x}.", "Can you tell me a {size}story about {x}?",
    "Write a {size}story about {x}.", "Please write a {size}story about {x}.",
    "I want to hear a {size}story about {x}.", "Do you know a {size}story about {x}?",
    "Tell a {size}story with {x} in it.", "A {size}story about {x}, please.",
    "Make up a {size}story about {x}.", "Could you write a {size}story about {x}?",
    "I would like a {size}story about {x}.", "Give me a {size}story about {x}.",
    "Please tell me a {size}story about {x}.", "Let me hear a {size}story about {x}!",
    "Can you write a {size}story about {x}?", "Story about {x}", "Tell me about {x} in a story.",
    "Write me a {size}story. It should be about {x}.", "A {size}bedtime story about {x}, please.",
    "Would you tell me a {size}story about {x}?", "How about a {size}story about {x}?",
)  # fmt: skip
_WORD = (
    "Write a {size}story with the word {n}.", "Tell me a {size}story with the word {n} in it.",
    "Write a {size}story that uses the word \"{n}\".", "Use the word {n} in a {size}story.",
    "Make up a {size}story. Use the word {n}.",
)  # fmt: skip
_ANY = (
    "Tell me a {size}story.", "Write a {size}story.", "I want to hear a {size}story.",
    "A {size}story, please!", "Can you tell me a {size}story?", "Tell me a {size}bedtime story.",
    "Please tell me a {size}story.", "Do you know a {size}story?", "Another {size}story, please.",
)  # fmt: skip
_TITLED = ("Write a {size}story called {q}.", "Tell me the story of {q}.",
           "Write a {size}story with the title {q}.")  # fmt: skip
_CONTINUE = (
    "Continue the story: {x}", "Go on with this story: {x}", "Continue: {x}",
    "How does this story go on? {x}", "Please finish this story: {x}", "{x}",
    "Write the rest of this story: {x}", "What happens next? {x}",
)  # fmt: skip
_SIZES = {"short": ("short ", "very short ", "little "), "long": ("long ", "longer ")}


def subjects(rng: random.Random, story: Story) -> str:
    """Return one to three things that a story is about."""
    know = story.know
    hero = article(know["k"])
    known = know["H"] in USUAL_NAMES
    if not known or rng.random() < 0.25:
        hero = f"{article(rng.choice((know['k'], know['ak'].split(' ', 1)[1])))} "
        hero += rng.choice(("named", "called", "named")) + " " + know["H"]
    place = know["p"] if know["p"].split()[-1] in story.text() else ""
    others = [rng.choice((know["an"], know["at"])), know["afk"], place]
    roll = rng.random()
    if know["F"] not in USUAL_NAMES:
        third = f" and {know['an']}" if know["n"] not in USUAL_NOUNS else ""
        return f"{hero} and {know['Fi']}{third}"
    if know["n"] not in USUAL_NOUNS:
        return know["an"] if known and roll < 0.6 else f"{hero} and {know['an']}"
    if roll < 0.32 or not known:
        return hero
    if roll < 0.37:
        return f"{know['H']} and {know['F']}"
    if roll < 0.57:
        return rng.choice((know["an"], know["at"]))
    if roll < 0.66:
        return rng.choice(story.plot.themes).format_map(know)
    second = rng.choice([o for o in others if o])
    if roll < 0.93:
        return f"{hero} and {second}"
    third = rng.choice([o for o in others if o and o != second])
    return f"{hero}, {second} and {third}"


def request(rng: random.Random, held_out: bool = False) -> tuple[list[Turn], Story]:
    """Return a request and the story that it gets."""
    length = rng.choice(("", "", "", "short", "long"))
    strange = rng.random() < 0.3
    story = invent(rng, held_out, length, strange)
    size = rng.choice(_SIZES[length]) if length else ""
    body, roll = story.text(), rng.random()
    if strange or roll < 0.72:
        ask = rng.choice(_ASK).format(size=size, x=subjects(rng, story))
    elif roll < 0.8:
        ask = rng.choice(_WORD).format(size=size, n=story.know["n"])
    elif roll < 0.88:
        ask = rng.choice(_ANY).format(size=size)
    elif roll < 0.92:
        ask = rng.choice(_TITLED).format(size=size, q=f'"{story.title}"')
        body = f"{story.title}\n{body}" if rng.random() < 0.5 else body
    else:
        cut = rng.randint(1, min(5, len(story.sentences) - 3))
        ask = rng.choice(_CONTINUE).format(x=" ".join(story.sentences[:cut]))
        body = story.text(cut)
    if rng.random() < 0.1:
        ask = ask.rstrip(".!?")
    if rng.random() < 0.1:
        ask = ask[0].lower() + ask[1:]
    return [user(ask), Turn("assistant", body, SAID)], story


def questions(rng: random.Random, story: Story) -> list[Turn]:
    """Return one to three questions about a story that has just been told."""
    know = story.know
    told = story.text()
    possible = [
        (("Who was the story about?", "Who is the hero of the story?", "Who is the story about?"),
         "The story was about {H}, {ak}."),
        (("What was the name of the {k}?", "What was the {k} called?", "What is the {k}'s name?"),
         "The {k} was called {H}."),
        (("What was the {fk} called?", "What was the name of the {fk}?"),
         "The {fk} was called {F}."),
        (("Who was {H}'s friend?", "Who else was in the story?", "Who did {H} meet?"),
         "{F}, {afk}."),
        (("Who was {F}?", "And who is {F}?"), "{F} was {afk}."),
        (("Who was {H}?", "And who is {H}?"), "{H} was {ak}."),
    ]  # fmt: skip
    if re.search(rf"\b{re.escape(know['inp'])}\b", told):
        possible.append((("Where was {H}?", "Where did it happen?"), "It happened {inp}."))
    if know["at"] in told:
        possible.append((("What did the {n} look like?", "How was the {n}?"), "It was {at}."))
    if story.lesson in told:
        learnt = ("What did {H} learn?", "What can we learn from the story?", "What is the moral?")
        possible.append((learnt, "{H} learned that " + story.lesson + "."))
    turns = []
    for asks, answer in rng.sample(possible, rng.randint(1, 3)):
        ask = rng.choice(asks).format_map(know)
        turns += [user(ask), Turn("assistant", answer.format_map(know), LOOKUP)]
    return turns


def conversation(rng: random.Random, held_out: bool = False) -> list[Turn]:
    """Return a story, sometimes questions about it, sometimes another one."""
    turns, story = request(rng, held_out)
    if rng.random() < 0.45:
        turns += questions(rng, story)
    if rng.random() < 0.25:
        more, story = request(rng, held_out)
        turns += more
        if rng.random() < 0.4:
            turns += questions(rng, story)
    return turns


def raw(rng: random.Random, held_out: bool = False) -> str:
    """Return a story without anybody asking for it."""
    return invent(rng, held_out).text()
