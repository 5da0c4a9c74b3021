"""Sentences planted in real text, and the same sentences asked for afterwards.

A question is the sentence again up to its answer, so a model needs neither a template nor training
to follow instructions. Half 0 and half 1 share neither paragraphs nor names nor values.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_PLACES = (
    "harbour", "museum", "orchard", "station", "library", "castle", "brewery", "mill",
    "chapel", "airport", "stadium", "quarry", "bakery", "lighthouse", "theatre", "prison",
    "hospital", "observatory", "sawmill", "monastery", "aquarium", "shipyard", "vineyard", "farm",
)  # fmt: skip
_PEOPLE = (
    "Maria Keller", "Tom Okafor", "Ana Ribeiro", "Viktor Lund", "Grace Holloway", "Omar Haddad",
    "Julia Brandt", "Pavel Novak", "Helen Marsh", "Diego Fuentes", "Ruth Abrams", "Kenji Mori",
    "Clara Jansen", "Samuel Boateng", "Irene Costa", "Felix Wagner", "Nora Quinn", "Ivan Petrov",
    "Lucy Harper", "Ahmed Nasser", "Emma Lindqvist", "Marco Bellini", "Sarah White", "Leo Tanaka",
)  # fmt: skip
_THINGS = {
    "favourite animal": ("otter", "horse", "falcon", "tiger", "rabbit", "whale", "camel", "goat"),
    "favourite colour": ("orange", "purple", "green", "yellow", "brown", "silver", "blue", "pink"),
    "home town": ("Lisbon", "Oslo", "Chicago", "Dublin", "Madrid", "Tokyo", "Vienna", "Prague"),
    "profession": ("nurse", "baker", "lawyer", "pilot", "farmer", "teacher", "sailor", "painter"),
}
_KEYS = (
    "max_delay", "retry_limit", "page_size", "port", "cache_lines", "timeout", "queue_len", "seed",
    "batch_rows", "workers", "fps", "buffer", "lease_days", "poll_ms", "quota", "level",
    "width_px", "max_users", "keep_days", "backlog", "margin", "min_score", "chunk_mb", "offset",
)  # fmt: skip

TASKS = ("codes", "facts", "settings")


@dataclass(frozen=True, slots=True)
class Planted:
    """A sentence of a context.

    Attributes:
        task: one of TASKS.
        ask: its beginning.
        answer: how it goes on, with the space before.
    """

    task: str
    ask: str
    answer: str

    @property
    def told(self) -> str:
        """The whole sentence."""
        return f"{self.ask}{self.answer} ."


@dataclass(frozen=True, slots=True)
class Planting:
    """A text, and what was planted there."""

    text: str
    planted: tuple[Planted, ...]


def half_of(text: str, half: int) -> str:
    """Half 0 or 1 of a text, cut at the end of a line."""
    cut = text.find("\n", len(text) // 2) + 1
    return text[cut:] if half else text[:cut]


def plantings(
    text: str, half: int, tokens: int, each: int, count_tokens: Callable[[str], int]
) -> Iterator[Planting]:
    """Contexts of about `tokens` tokens, without end; the same ones every time.

    Args:
        text: of one half, in paragraphs, one a line.
        half: 0 or 1, which names and values are used.
        tokens: length of a context.
        each: sentences of each task in a context.
        count_tokens: of a text.

    Raises:
        ValueError: the text is too short.
    """
    rng = random.Random(half)
    paragraphs = [line.strip() for line in text.splitlines() if len(line) > 200]
    if len(text) < 20 * tokens:
        raise ValueError(f"{len(text):,} characters of text, expected at least {20 * tokens:,}")
    while True:
        planted = planted_sentences(rng, half, each)
        left = tokens - count_tokens(" ".join(one.told for one in planted))
        sentences: list[str] = []
        at = rng.randrange(len(paragraphs))
        while left > 0:
            paragraph = paragraphs[at % len(paragraphs)]
            for sentence in paragraph.split(" . "):
                if left > 0:
                    sentences.append(sentence.removesuffix(" .") + " .")
                    left -= count_tokens(sentences[-1])
            sentences[-1] += "\n"
            at += 1
        # Evenly spread, from the first sentence to the last but two.
        places = [round(i * (len(sentences) - 2) / len(planted)) for i in range(len(planted))]
        for place, one in reversed(list(zip(places, planted, strict=True))):
            sentences.insert(place, one.told)
        yield Planting(" ".join(sentences), planted)


def planted_sentences(rng: random.Random, half: int, each: int) -> tuple[Planted, ...]:
    """`each` sentences of every task, in random order."""

    def some(names: Sequence[str]) -> list[str]:
        return rng.sample(names[half::2], each)

    made = [
        Planted("codes", f"The access code of the {place} is", f" {rng.randrange(10**4, 10**5)}")
        for place in some(_PLACES)
    ]
    for person in some(_PEOPLE):
        thing = rng.choice(tuple(_THINGS))
        ask = f"The {thing} of {person} is"
        made.append(Planted("facts", ask, f" {rng.choice(_THINGS[thing][half::2])}"))
    made += [
        Planted("settings", f"The setting {key} has the value", f" {rng.randrange(100, 1000)}")
        for key in some(_KEYS)
    ]
    rng.shuffle(made)
    return tuple(made)
