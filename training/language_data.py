"""Training data for talking: stories on request, small talk, simple instructions."""

from __future__ import annotations

import random

import corpus
import dialogue_data
import recall_data
import story_data
from recall_data import SAID, FillerTurns, Turn, user

from edgetok.evaluation.recall_patterns import CHATTER

_ASK_STORY = (
    "Tell me a story about {a}.",
    "Can you tell me a story about {a}?",
    "Write a story about {a}.",
    "Please write a short story about {a}.",
    "I want to hear a story about {a}.",
    "Do you know a story about {a}?",
    "Tell a story with {a} in it.",
    "A story about {a}, please.",
    "Make up a story about {a}.",
    "Could you write a little story about {a}?",
)
_ASK_ANY = ("Tell me a story.", "Write a story.", "I want to hear a story.", "A story, please!")


def with_article(noun: str) -> str:
    """Return the noun as a request names it."""
    if noun in ("ice", "snow", "rain", "candy", "soup"):
        return noun
    if noun in ("sun", "sea", "moon", "park", "beach", "zoo", "wind"):
        return "the " + noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def invented_story(rng: random.Random, held_out: bool = False) -> list[Turn]:
    """Return an invented story on request and questions about it."""
    return story_data.conversation(rng, held_out)


# Of the training stories, how many are the other model's: they vary more and mean less.
_WRITTEN_SHARE = 0.3


def _written(rng: random.Random, held_out: bool) -> bool:
    return not held_out and bool(corpus.written_stories()) and rng.random() < _WRITTEN_SHARE


def any_story(rng: random.Random, held_out: bool = False) -> str:
    """Return a story of any topic."""
    written = _written(rng, held_out)
    return rng.choice(corpus.written_stories() if written else corpus.stories(held_out))


def told_story(rng: random.Random, held_out: bool = False) -> list[Turn]:
    """Return a request for a story and a real story that answers it, more or less."""
    if rng.random() < 0.15:
        ask = rng.choice(_ASK_ANY)
        story = any_story(rng, held_out)
    else:
        topic, story = rng.choice(corpus.told_stories(held_out, _written(rng, held_out)))
        ask = rng.choice(_ASK_STORY).format(a=with_article(topic))
    return [user(ask), Turn("assistant", corpus.rename(story, rng), SAID)]


_SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a small helpful model.",
    "You are a kind storyteller.",
    "Answer in short sentences.",
)


def chat(rng: random.Random, held_out: bool = False) -> list[Turn]:
    """A conversation: a greeting perhaps, some exchanges, now and then a story, a farewell."""
    turns: list[Turn] = []
    if rng.random() < 0.2:
        turns.append(Turn("system", rng.choice(_SYSTEM), recall_data.READ))
    roll = rng.random()
    if roll < 0.25:
        turns += dialogue_data.acquaintance(rng)
    elif roll < 0.32:
        turns += dialogue_data.favourite(rng)
    elif roll < 0.4:  # nothing was told so far
        turns += dialogue_data.turns_of(dialogue_data.not_told(rng))
    elif roll < 0.75:
        turns += dialogue_data.greeting(rng)
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.1:
            turns += invented_story(rng, held_out)
        elif rng.random() < 0.06:
            turns += dialogue_data.memories(rng)
        else:
            turns += dialogue_data.turns_of(dialogue_data.exchange(rng, held_out))
    if rng.random() < 0.3:
        turns += dialogue_data.farewell(rng)
    return turns


def drill(rng: random.Random) -> list[Turn]:
    """Return an exchange with one right answer, learnt by repetition."""
    turns: list[Turn] = []
    for _ in range(rng.randint(4, 12)):
        turns += dialogue_data.turns_of(dialogue_data.drill(rng), recall_data.LOOKUP)
    return turns


def filler_turns(rng: random.Random) -> FillerTurns:
    """Return small talk between a fact and its question, in one style per conversation."""

    def stories(rng: random.Random) -> list[Turn]:
        ask, story = story_data.request(rng)[0]
        if rng.random() < 0.4:  # a real one, which nobody should get who asks for a story
            ask, story = user(rng.choice(CHATTER)), told_story(rng)[1]
        return [ask, story._replace(mark=recall_data.READ)]

    def small_talk(rng: random.Random) -> list[Turn]:
        ask, answer = dialogue_data.turns_of(dialogue_data.exchange(rng))
        return [ask, answer._replace(mark=recall_data.READ)]

    def any_of_them(rng: random.Random) -> list[Turn]:
        return rng.choice(manners)(rng)

    manners = (recall_data.plain_filler_turns, stories, small_talk)
    return rng.choice((*manners, any_of_them))
