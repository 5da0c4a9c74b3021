"""Stop texts, cut at every possible place."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from edgetok.text.stop import StopFinder


def run(text: str, stops: list[str], cuts: list[int], until: str = "") -> tuple[str, str | None]:
    finder = StopFinder(stops, until)
    out = ""
    places = [0, *sorted(cuts), len(text)]
    for a, b in itertools.pairwise(places):
        out += finder.push(text[a:b])
        if finder.found is not None:
            return out, finder.found
    return out + finder.finish(), finder.found


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello\nUser: x", ["\nUser:"], ("hello", "\nUser:")),
        ("abab", ["abc"], ("abab", None)),
        ("aaab", ["aab"], ("a", "aab")),
        ("xENDy", ["E", "END"], ("x", "END")),
        ("one two", ["two", "one"], ("", "one")),
        ("nothing", [], ("nothing", None)),
        ("ends with STO", ["STOP"], ("ends with STO", None)),
        ("🙂🙃", ["🙃"], ("🙂", "🙃")),
    ],
)
def test_wherever_it_is_cut(text: str, stops: list[str], expected: tuple[str, str | None]) -> None:
    result = {run(text, stops, [cut]) for cut in range(len(text) + 1)}
    result.add(run(text, stops, list(range(len(text)))))
    texts = {t for t, _ in result}
    assert texts == {expected[0]}


def test_random_texts_against_a_plain_search() -> None:
    rng = random.Random(2)
    for _ in range(500):
        text = "".join(rng.choice("ab") for _ in range(30))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 6))) for _ in range(2)]
        cuts = [rng.randrange(31) for _ in range(8)]
        out, result = run(text, stops, cuts)
        ends = [text.find(s) for s in stops if s in text]
        if result is None:
            assert not ends
            assert out == text
        else:
            assert text.startswith(out + result)


def test_stops_end_where_another_text_begins() -> None:
    """Against a plain search: those that begin behind it do not count."""
    rng = random.Random(3)
    found = Counter[bool]()
    for _ in range(2000):
        text = "".join(rng.choice("abc") for _ in range(20))
        stops = ["".join(rng.choice("abc") for _ in range(rng.randint(1, 4))) for _ in range(2)]
        until = "".join(rng.choice("abc") for _ in range(rng.randint(1, 3)))
        cuts = [rng.randrange(21) for _ in range(8)]
        out, result = run(text, stops, cuts, until)
        end = text.find(until) if until in text else len(text)
        places = [text.find(stop) for stop in stops if 0 <= text.find(stop) <= end]
        found[result is None] += 1
        assert (result is None) == (not places)
        if result is None:
            assert out == text
        else:
            assert text.startswith(out + result)
            assert len(out) in places
    assert min(found.values()) > 200


def test_text_is_given_out_as_soon_as_it_is_safe() -> None:
    finder = StopFinder(["STOP"])
    assert [finder.push(c) for c in "aSTxST"] == ["a", "", "", "STx", "", ""]
    assert finder.finish() == "ST"


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        ([("Hi", ""), ("", "<end>"), ("u", "")], ["<end>"], ("Hi", "<end>")),
        ([("H", ""), ("i", ""), ("", "<end>")], ["i<end>"], ("H", "i<end>")),
        ([("Hi", "<end>"), ("u", "")], ["<end>u"], ("Hi", "<end>u")),
        ([("Hi", "<end>"), ("v", "")], ["<end>u"], ("Hiv", None)),
        ([("a", "<x>"), ("b", "<y>"), ("c", "")], ["<y>c", "zz"], ("ab", "<y>c")),
        ([("a", "<x>"), ("b", "")], [], ("ab", None)),
    ],
)
def test_special_tokens_stop_and_are_not_shown(
    pieces: list[tuple[str, str]], stops: list[str], expected: tuple[str, str | None]
) -> None:
    finder = StopFinder(stops)
    shown = "".join(finder.push(text, hidden) for text, hidden in pieces) + finder.finish()
    assert (shown, finder.found) == expected
