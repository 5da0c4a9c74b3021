"""Four-line poems on request, from rhyming halves; every line stands for itself."""

from __future__ import annotations

import random

_PAIRS = (
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
_ASK = ("Write a poem about {x}.", "Write a short poem about {x}.", "A poem about {x}, please.",
        "Can you write a poem about {x}?", "Tell me a poem about {x}.",
        "Make a little poem about {x}.", "I would like a poem about {x}.")  # fmt: skip


def poem(rng: random.Random, noun: str, with_article: str) -> tuple[str, str]:
    """Return a request for a poem about the noun, and two rhyming pairs of lines."""
    ask = rng.choice(_ASK).format(x=rng.choice((with_article, "the " + noun)))
    lines = [line for pair in rng.sample(_PAIRS, 2) for line in pair]
    text = "\n".join(line.format(n=noun, an=with_article) for line in lines)
    return ask, "\n".join(t[0].upper() + t[1:] for t in text.split("\n"))
