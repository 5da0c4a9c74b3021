"""Schemas that are taken, those refused by name, and texts that would bring a parser down."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

import pydantic
import pytest

from edgetok.errors import GrammarError
from edgetok.grammar.definition import Grammar
from edgetok.grammar.schema import checked_schema

UNSUPPORTED: dict[str, Any] = {
    "not": {"type": "string"},
    "if": {},
    "then": {},
    "else": {},
    "uniqueItems": True,
    "contains": {"type": "string"},
    "minContains": 1,
    "maxContains": 1,
    "propertyNames": {"pattern": "a"},
    "dependencies": {"a": ["b"]},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {}},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "additionalItems": False,
    "$dynamicRef": "#a",
    "$recursiveRef": "#",
}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_unsupported_keywords_are_named_with_their_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {"items": {keyword: UNSUPPORTED[keyword]}}}}
    expected = f"schema.properties.a.items: unsupported keyword '{keyword}'; leave it out"
    with pytest.raises(GrammarError, match=re.escape(expected)):
        Grammar.json_schema(schema)


def test_a_long_pattern_is_not_repeated() -> None:
    """Not in the place of a fault inside of it, which has one line."""
    pattern = "a" * 100_000
    with pytest.raises(GrammarError, match=r"patternProperties\.a{40}\.\.\.") as caught:
        checked_schema({"patternProperties": {pattern: {"items": {pattern: {}, "not": {}}}}})
    assert len(str(caught.value)) < 200


def test_keywords_that_say_nothing_are_left_out() -> None:
    """As zod writes records, and with them many clients the parameters of tools."""
    record = {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "array", "uniqueItems": False},
    }
    found = checked_schema({"type": "object", "properties": {"a": record}})["properties"]["a"]
    assert found == {"type": "object", "additionalProperties": {"type": "array"}}
    for other in ({"type": "string", "maxLength": 3}, False, {"pattern": "^a"}):
        with pytest.raises(GrammarError, match=r"schema\.items: .*'propertyNames'"):
            checked_schema({"items": record | {"propertyNames": other}})


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    checked_schema({"type": "object", "properties": {"not": {"const": {"if": {"items": [1]}}}}})


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"items": [{}, {}]}, "use prefixItems"),
        ({"exclusiveMinimum": True}, "as in draft 4"),
        ({"minProperties": 2, "required": ["a"]}, "unsupported minProperties of 2 where 1 keys"),
        ({"anyOf": {}}, "expected a list"),
        ({"properties": [1]}, "expected an object"),
        ({"anyOf": [3]}, r"schema\.anyOf\[0\] is 3, expected a schema"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": object()}, "not JSON"),
        ([1], "expected a JSON object or a pydantic model class"),
        ("{", "not JSON"),
        (None, "expected a JSON object"),
    ],
)
def test_other_refusals(schema: Any, problem: str) -> None:
    with pytest.raises(GrammarError, match=problem):
        Grammar.json_schema(schema)


def test_a_pydantic_model_and_its_schema_are_the_same() -> None:
    class Cat(pydantic.BaseModel):
        name: str
        lives: int = 9

    assert Grammar.json_schema(Cat) == Grammar.json_schema(Cat.model_json_schema())
    assert Grammar.json_schema(Cat) == Grammar.json_schema(json.dumps(Cat.model_json_schema()))


def test_objects_get_no_keys_that_nobody_named() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}}
    found = checked_schema({"type": "object", "properties": {"a": inner}})
    assert found["additionalProperties"] is False
    assert found["properties"]["a"]["additionalProperties"] is False
    # A schema that says so itself, or that others add to, is left as it is.
    assert checked_schema({"properties": {}, "additionalProperties": True})["additionalProperties"]
    for combined in ({"allOf": [inner]}, {"$ref": "#/$defs/a", "properties": {}}):
        assert "additionalProperties" not in json.dumps(checked_schema(combined))


@pytest.mark.parametrize("kind", ["number", ["number", "null"], None])
@pytest.mark.parametrize("bound", [24, -24, 0.1, -1e-5, 1e22, 2**53 - 1, 31.5])
def test_exclusive_bounds_keep_one_float_away(bound: float, kind: Any) -> None:
    for keyword, inclusive, sign in (
        ("exclusiveMinimum", "minimum", 1),
        ("exclusiveMaximum", "maximum", -1),
    ):
        typed = {} if kind is None else {"type": kind}
        found = checked_schema({"items": typed | {keyword: bound}})["items"]
        if bound >= 2**53:
            assert found[keyword] == bound
            continue
        assert keyword not in found
        last = float(bound)
        assert (found[inclusive] - last) * sign > 0
        middle = (Fraction(found[inclusive]) + Fraction(last)) / 2
        assert float(middle) in (found[inclusive], last)  # there is no float in between
        # A bound that is nearer already stays.
        nearer = bound + sign * 1000.5
        assert checked_schema(typed | {keyword: bound, inclusive: nearer})[inclusive] == nearer


def test_other_bounds_stay() -> None:
    for schema in (
        {"type": "integer", "exclusiveMinimum": 24},
        {"type": "number", "exclusiveMinimum": 0, "minimum": -1},
        {"type": "number", "minimum": 24, "maximum": 25.5},
        {"enum": [{"exclusiveMinimum": 24}]},
    ):
        assert checked_schema({"items": schema})["items"] == schema


def test_the_given_schema_is_not_changed() -> None:
    number = {"type": "number", "exclusiveMinimum": 24}
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": number}}
    before = json.dumps(schema)
    checked_schema(schema)
    assert json.dumps(schema) == before


def nested(levels: int) -> Any:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json_schema(nested(60_000)),
        lambda: Grammar.json_schema('{"items":' * 60_000 + "{}" + "}" * 60_000),
        lambda: Grammar.regex("(" * 60_000 + ")" * 60_000),
        lambda: Grammar.regex("[[" * 60_000),
        lambda: Grammar.lark("start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
        lambda: Grammar.regex("a" * (2 << 20)),
        lambda: Grammar.choice(["a" * 1000] * 2000),
    ],
)
def test_bombs_are_refused(make: Any) -> None:
    with pytest.raises(GrammarError, match=r"nest|expected at most|not JSON"):
        make()


def test_escaped_brackets_do_not_count() -> None:
    Grammar.regex(r"\(" * 1000)


@pytest.mark.parametrize("given", [[], "ab", ["a", ""], [1], {"regex": 3}, {"a": "b"}, 7, {}])
def test_grammars_that_mean_nothing(given: Any) -> None:
    with pytest.raises(GrammarError):
        Grammar.of(given)


def test_of() -> None:
    assert (
        Grammar.of(["a", "b"]) == Grammar.of({"choice": ["a", "b"]}) == Grammar.choice(["a", "b"])
    )
    assert Grammar.of({"regex": "a+"}) == Grammar.of(Grammar.regex("a+"))
    assert Grammar.of({"json_schema": {"type": "object"}}) == Grammar.json_object()
    assert Grammar.of({"lark": "start: /a/"}).kind == "Lark grammar"
