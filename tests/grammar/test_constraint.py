"""Masks against what the grammar means: random walks, forced tokens, going back, and failures."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from edgetok.errors import GrammarError
from edgetok.grammar.constraint import GrammarConstraint
from edgetok.grammar.definition import Grammar
from edgetok.grammar.vocabulary import Vocabulary
from edgetok.sampling.constraint import allowed_tokens
from edgetok.text.tokenizer import Tokenizer
from tests.at_once import at_once

CAT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "lives": {"type": "integer", "minimum": 1, "maximum": 9},
        "colours": {"type": "array", "items": {"enum": ["red", "blüe", "<s>"]}, "maxItems": 2},
        "owner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/person"}]},
    },
    "required": ["name", "lives", "owner"],
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"born": {"type": "string", "format": "date"}},
            "required": ["born"],
        }
    },
}


def walk(
    constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int, most: int = 400
) -> tuple[list[int], bool]:
    """Choose allowed tokens at random, but rather short ones, until the answer is over."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    stream = tokenizer.stream((), exact=True)
    while not constraint.ended and len(tokens) < most:
        allowed = np.flatnonzero(allowed_tokens(constraint.mask(), tokenizer.vocab_size))
        assert (tokenizer.eos_token in allowed) == constraint.complete
        known = [token for token in allowed if tokenizer.token_text(int(token)) is not None]
        assert len(known) == len(allowed)  # no logit without a token
        token = int(rng.choice(allowed))
        constraint.accept(token)
        if token == tokenizer.eos_token:
            assert constraint.complete
            return tokens, True
        tokens.append(token)
        stream.push(token)
    return tokens, constraint.ended


def spelled(tokenizer: Tokenizer, tokens: list[int]) -> str:
    stream = tokenizer.stream((), exact=True)
    return "".join(map(stream.push, tokens)) + stream.finish()


def test_random_walks_match_the_schema(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    start = vocabulary.constraint(Grammar.json_schema(CAT))
    finished = 0
    for seed in range(12):
        tokens, over = walk(start.fork(), tokenizer, seed)
        if over:
            jsonschema.validate(json.loads(spelled(tokenizer, tokens)), CAT)
            finished += 1
    assert finished >= 6


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex(r"[a-f]{2,5}/[0-9]{1,3}(é|\n)"), r"[a-f]{2,5}/[0-9]{1,3}(é|\n)"),
        (Grammar.regex("a\n/b"), "a\n/b"),
        (Grammar.choice(["yes", "no\n", ' "maybe" ', "<|im_end|>", "<s>", "\x01"]), None),
        (Grammar.lark('start: A+ ("," A)*\nA: "x" | /y[0-9]/'), "(x|y[0-9])+(,(x|y[0-9]))*"),
    ],
)
def test_texts_match(
    tokenizer: Tokenizer, vocabulary: Vocabulary, grammar: Grammar, pattern: str | None
) -> None:
    found = set()
    for seed in range(15):
        tokens, over = walk(vocabulary.constraint(grammar), tokenizer, seed, most=60)
        if over:
            found.add(spelled(tokenizer, tokens))
    assert found
    if pattern is None:
        assert found <= {"yes", "no\n", ' "maybe" ', "<|im_end|>", "<s>", "\x01"}
        assert len(found) >= 4
    else:
        assert all(re.fullmatch(pattern, text) for text in found)


def test_forced_tokens_are_all_that_masks_allow(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    constraint = vocabulary.constraint(Grammar.json_schema(CAT))
    rng = np.random.default_rng(1)
    several = 0
    for _ in range(60):
        forced = constraint.forced_tokens()
        several += len(forced) > 1
        probe = constraint.fork()
        for token in forced:
            allowed = np.flatnonzero(allowed_tokens(probe.mask(), tokenizer.vocab_size))
            assert allowed.tolist() == [token]
            probe.accept(token)
        for token in forced or [None]:
            if token is None:
                allowed = np.flatnonzero(allowed_tokens(constraint.mask(), tokenizer.vocab_size))
                token = int(rng.choice(allowed))
            constraint.accept(token)
        if constraint.ended:
            break
    assert several >= 1


def test_going_back_gives_the_same_masks(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    constraint = vocabulary.constraint(Grammar.json_schema(CAT))
    tokens, _ = walk(constraint.fork(), tokenizer, 3)
    masks = []
    for token in tokens:
        masks.append(constraint.mask().copy())
        constraint.accept(token)
    other = constraint.fork()
    constraint.rollback(len(tokens) // 2)
    half = len(tokens) - len(tokens) // 2
    for token, mask in zip(tokens[half:], masks[half:], strict=True):
        np.testing.assert_array_equal(constraint.mask(), mask)
        constraint.accept(token)
    other.rollback(0)
    other.rollback(len(tokens))
    np.testing.assert_array_equal(other.mask(), masks[0])


def test_choices_that_begin_alike_and_many_of_them(small: Vocabulary) -> None:
    constraint = small.constraint(Grammar.choice(["a", "ab", *(f"c{i:05}" for i in range(9000))]))
    constraint.mask()
    other = constraint.fork()
    seen = []
    for byte in b"ab":
        constraint.accept(_token(byte))
        seen.append((constraint.complete, constraint.ended))
    assert seen == [(True, False), (True, True)]
    for byte in b"c0899":
        other.mask()
        other.accept(_token(byte))
    assert not other.complete
    allowed = np.flatnonzero(allowed_tokens(other.mask(), 256))
    assert sorted(allowed) == sorted(map(_token, b"0123456789"))


def test_a_token_that_is_not_allowed_ends_it_for_good(small: Vocabulary) -> None:
    constraint = small.constraint(Grammar.choice(["ab"]))
    with pytest.raises(GrammarError, match="the grammar failed"):
        constraint.accept(100)
    for use in (constraint.mask, constraint.forced_tokens, lambda: constraint.accept(64)):
        with pytest.raises(GrammarError, match="the grammar failed"):
            use()
    assert not constraint.complete
    assert not constraint.ended


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"exclusiveMinimum": 24},
            ["24.000000000000004", "24.5", "25", "100000"],
            ["24", "24.0", "24.0000000000000001", "24.000000000000003", "-25"],
        ),
        (
            {"exclusiveMaximum": 0.3, "exclusiveMinimum": -1.5},
            ["0.29999999999999993", "0", "-1.4999999999999997", "-1"],
            ["0.3", "0.29999999999999999", "-1.5", "-1.4999999999999999", "1"],
        ),
        ({"exclusiveMinimum": 0}, ["0.0000000000000000000001", "7"], ["0", "0.0", "-1"]),
    ],
)
def test_numbers_beside_exclusive_bounds(
    small: Vocabulary, schema: Any, good: list[str], bad: list[str]
) -> None:
    """What the mask allows is valid for `jsonschema` too, which compares floats."""
    schema = {"type": "number"} | schema
    for text in good + bad:
        constraint = small.constraint(Grammar.json_schema(schema))
        try:
            for byte in text.encode():
                constraint.accept(_token(byte))
            complete = constraint.complete
        except GrammarError:
            complete = False
        assert complete == (text in good), text
        if complete:
            jsonschema.validate(json.loads(text), schema)


def test_whitespace_is_bounded(small: Vocabulary) -> None:
    def taken(text: str) -> int:
        constraint = small.constraint(Grammar.json_object())
        for i, byte in enumerate(text.encode()):
            try:
                constraint.accept(_token(byte))
            except GrammarError:
                return i
        return len(text)

    indented = '{\n  "a": [1, 2],\n  "b": {\n    "c": "x"\n  }\n}'
    assert taken(indented) == len(indented)
    assert taken('{"a":  1}') == 6
    assert taken("{\n\n") == 2
    assert taken("{\n" + " " * 100) == 34
    assert taken(" {") == 0


def _token(byte: int) -> int:
    from tokenizers import pre_tokenizers

    from edgetok.text.detokenizer import _BYTES_OF

    places = sorted(pre_tokenizers.ByteLevel.alphabet())
    return places.index(next(c for c, value in _BYTES_OF.items() if value == byte))


def test_halves_of_surrogate_pairs_are_not_written(small: Vocabulary) -> None:
    constraint = small.constraint(Grammar.json_schema({"type": "string"}))
    for byte in b'"\\':
        constraint.accept(_token(byte))
    allowed = allowed_tokens(constraint.mask(), 258)
    assert allowed[_token(ord("n"))]
    assert not allowed[_token(ord("u"))]


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        (Grammar.json_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (Grammar.json_schema({"type": "string", "format": "colour"}), "Unknown format: colour"),
        (Grammar.json_schema({"type": "strin"}), "Invalid type: strin"),
        (Grammar.json_schema({"$ref": "https://example.com/schema"}), "not present in a registry"),
        (Grammar.json_schema({"minimum": 5, "maximum": 3, "type": "integer"}), "Unsatisfiable"),
        (Grammar.json_schema({"enum": [f"i{i}" for i in range(90_000)]}), "too big"),
        (Grammar.regex("a(?=b)"), "look-around"),
        (Grammar.regex("a("), "unclosed group"),
        (Grammar.lark("nothing: /a/"), "start"),
        (Grammar.lark("start: @other"), "other"),
    ],
)
def test_what_cannot_be_compiled(small: Vocabulary, grammar: Grammar, problem: str) -> None:
    with pytest.raises(GrammarError, match=f"the {grammar.kind} cannot be used: .*{problem}"):
        small.constraint(grammar)


def test_a_schema_that_nothing_matches_fails_with_its_first_mask(small: Vocabulary) -> None:
    loop = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    with pytest.raises(GrammarError, match="the grammar failed"):
        small.constraint(Grammar.json_schema(loop)).mask()


class Panic(BaseException):
    """Like pyo3's PanicException, which is not an Exception."""


class Panicking:
    def __getattr__(self, name: str) -> Any:
        def fail(*args: object) -> Any:
            raise Panic(f"panicked in {name}")

        return fail


def test_a_panic_fails_closed() -> None:
    constraint = GrammarConstraint(Panicking(), 100, frozenset({3}))
    for use in (
        constraint.mask,
        constraint.forced_tokens,
        constraint.fork,
        lambda: constraint.accept(1),
        lambda: constraint.rollback(1),
        lambda: constraint.complete,
        lambda: constraint.ended,
    ):
        with pytest.raises(GrammarError, match=r"the grammar failed, .*: panicked in"):
            use()


def test_a_model_without_end_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GrammarError, match="no end token"):
        Vocabulary(tokenizer, ())


@pytest.mark.parametrize("kind", ["regex", "schema"])
@pytest.mark.parametrize(
    ("pattern", "refused"),
    [
        ("(a+)+b", False),
        ("(a|b)*a(a|b){3000}", False),
        ("((a|b)*a(a|b){20}c|(b|a)*b(a|b){21}d)*", False),
        ("(((a{99}){99}){99}){99}", True),
        ("(a?){2000}a{2000}", True),
    ],
)
def test_hostile_expressions_are_bounded(
    small: Vocabulary, kind: str, pattern: str, refused: bool
) -> None:
    """Expressions on which a matcher that goes back, or a table of all states, never ends."""
    alphabet = sorted(ByteLevel.alphabet())  # of `write_tokenizer`
    quote, a = (alphabet.index(letter) for letter in ('"', "a"))
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    grammar = Grammar.regex(pattern) if kind == "regex" else Grammar.json_schema(schema)

    def write() -> int:
        constraint = small.constraint(grammar)
        for token in [quote] * (kind == "schema") + [a] * 200:
            constraint.mask()
            constraint.accept(token)
        return 200

    with at_once():
        if refused:
            with pytest.raises(GrammarError, match="too many expressions"):
                write()
        else:
            assert write() == 200
