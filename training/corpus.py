"""The stories on disk: where they are, which are kept for evaluation, and names swapped in them."""

from __future__ import annotations

import os
import random
import re
from functools import cache
from pathlib import Path

from edgetok.evaluation.recall import is_held_out
from edgetok.evaluation.recall_patterns import word_list

_HERE = Path(__file__).resolve().parent
END = "<|endoftext|>"

# Nouns a child asks a story about; a story qualifies if it says the word at least twice.
TOPICS = word_list(
    "bunny rabbit cat dog bird bear fox frog fish duck mouse lion tiger monkey elephant "
    "horse cow pig owl bee ant butterfly squirrel turtle puppy kitten dragon princess "
    "prince king queen fairy monster robot ghost witch boy girl mom dad brother sister "
    "friend baby farmer doctor teacher tree flower garden park forest house castle "
    "beach sea river lake mountain cave farm zoo school shop kitchen boat car truck "
    "train plane bike bus ball doll toy kite book hat dress shoe box cake cookie apple "
    "banana soup candy pizza sandwich ice snow rain sun moon star rainbow cloud wind "
    "storm birthday party picnic game race song dance picture letter present treasure "
    "key button mirror blanket bed lamp balloon bubble drum guitar slide swing puzzle "
    "block"
)
_GIRLS = word_list(
    "Lily Sue Anna Mia Lucy Sara Jane Amy Emma Ella Molly Daisy Kate Anne Mary Jill "
    "Sarah Emily Bella Rosie Clara Nina Ida Zoe Flora Tina Lena"
)
_BOYS = word_list(
    "Tim Tom Ben Max Sam Jack John Bob Billy Timmy Tommy Joe Mark Jim Leo Fred Peter "
    "Johnny Spot Paul Oscar Felix Hugo Finn Otto Carl Theo"
)
_NAME = re.compile(r"\b(" + "|".join(sorted({*_GIRLS, *_BOYS})) + r")\b")


def data_dir() -> Path:
    """Folder of the reference texts: EDGETOK_DATA, or `shared/data` beside the checkout.

    Raises:
        FileNotFoundError: neither exists.
    """
    for path in (os.environ.get("EDGETOK_DATA"), _HERE.parents[1] / "shared" / "data"):
        if path and Path(path).is_dir():
            return Path(path)
    raise FileNotFoundError(
        "no reference texts found; set EDGETOK_DATA to the folder that holds text/"
    )


@cache
def stories(held_out: bool) -> tuple[str, ...]:
    """TinyStories on one side of the split; one story in ten is for evaluation."""
    text = (data_dir() / "text" / "tinystories.txt").read_text(encoding="utf-8")
    clean = (re.sub(r"[ \t]*\n\s*", "\n", s).strip() for s in text.split(END))
    return tuple(s for s in clean if len(s) > 80 and is_held_out("story", s) == held_out)


@cache
def written_stories() -> tuple[str, ...]:
    """Return the stories of `synthetic_stories.py` in `checkpoints/`; none if it was not run."""
    folder = _HERE.parent / "checkpoints"
    result: list[str] = []
    for batch in range(1000):
        path = folder / f"synthetic_stories.{batch}.txt"
        if not path.exists():
            break
        result += path.read_text(encoding="utf-8").split(END)
    return tuple(s.strip() for s in result if len(s) > 200)


@cache
def told_stories(held_out: bool, written: bool) -> tuple[tuple[str, str], ...]:
    """(topic, story), so that one draws evenly among stories: a rare topic is not learnt by heart.

    Args:
        held_out: the side of the split, for the real ones.
        written: those of the other model instead of the real ones.
    """
    result = []
    for story in written_stories() if written else stories(held_out):
        words = re.findall(r"[a-z]+", story.lower())
        result += [(t, story) for t in TOPICS if words.count(t) + words.count(t + "s") >= 2]
    return tuple(result)


def rename(story: str, rng: random.Random) -> str:
    """Return the same story about other people, consistently; makes a small corpus last longer."""
    used = set(_NAME.findall(story))
    new: dict[str, str] = {}
    for pool in (_GIRLS, _BOYS):
        free = [n for n in pool if n not in used]
        rng.shuffle(free)
        new |= {old: free.pop() for old in sorted(used) if old in pool}
    return _NAME.sub(lambda m: new[m.group()], story)
