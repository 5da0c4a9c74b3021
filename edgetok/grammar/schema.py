"""JSON schemas, checked before llguidance compiles them.

llguidance refuses most of what it cannot hold. This module refuses the rest: keywords with another
meaning in older drafts, and bounds that equal keys would break. It says where in the schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from edgetok.errors import GrammarError

MAX_DEPTH = 60
_SHOWN_CHARACTERS = 40  # of a property's name or pattern, in messages
WHITESPACE = r"(\x20|\n\x20{0,32})"
"""Between two parts of JSON at most this: a model that loses its way cannot fill the context."""
ESCAPES = 'nrbtf\\"'
r"""Escapes in strings; without \u, because half of a surrogate pair is not Unicode."""

# Keywords of draft 2020-12 and before it that cannot be held while a text is written.
_UNSUPPORTED = frozenset(
    re.findall(
        r"\S+",
        """$dynamicRef $recursiveRef additionalItems contains dependencies dependentRequired
        dependentSchemas disallow divisibleBy else extends if maxContains minContains not
        propertyNames then unevaluatedItems unevaluatedProperties uniqueItems""",
    )
)
# Of these, values that say nothing. Zod writes the first for every record.
_EMPTY: dict[str, tuple[Any, ...]] = {
    "propertyNames": ({"type": "string"}, {}, True),
    "uniqueItems": (False,),
}
_SCHEMAS = ("additionalProperties", "items")  # hold a schema
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")  # hold a list of schemas
_BOUNDS: tuple[tuple[str, str, float, Callable[[float, float], float]], ...] = (
    ("exclusiveMinimum", "minimum", math.inf, max),
    ("exclusiveMaximum", "maximum", -math.inf, min),
)
_LARGEST = 2**53  # integers beyond it are not told apart as floats, but are as integers
_MAPS = ("$defs", "definitions", "patternProperties", "properties")  # hold schemas by name


def checked_schema(given: object) -> Any:
    """Return a schema that llguidance holds as it is meant.

    Objects with `properties` that say nothing of others get no others, unless schemas combine.
    Numbers keep away from exclusive bounds as floats too.

    Args:
        given: a mapping, its JSON text, or a pydantic model class.

    Raises:
        GrammarError: it is not a schema, or has a keyword that cannot be held; names the place.
    """
    make = getattr(given, "model_json_schema", None)
    if callable(make):
        given = make()
    elif isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is not JSON: {error}") from error
    if not isinstance(given, Mapping):
        raise GrammarError(
            f"the schema is {given!r:.80}, expected a JSON object or a pydantic model class"
        )
    _check(given, "schema", 0)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is not JSON: {error}") from error
    _leave_out_empty(plain)
    if not _combines(plain):
        _close(plain)
    _round_bounds(plain)
    plain["x-guidance"] = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES}
    return plain


def _check(schema: object, place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise GrammarError(
            f"the schema is nested more than {MAX_DEPTH} levels deep; make it flatter, or use $ref"
        )
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise GrammarError(f"{place} is {schema!r:.60}, expected a schema")
    for keyword in schema:
        if keyword in _UNSUPPORTED and schema[keyword] not in _EMPTY.get(keyword, ()):
            raise GrammarError(f"{place}: unsupported keyword {keyword!r}; leave it out")
    _check_drafts(schema, place)
    _check_keys(schema, place)
    for key in _SCHEMAS:
        if key in schema:
            _check(schema[key], f"{place}.{key}", depth + 1)
    for key in _LISTS:
        if key in schema:
            if not isinstance(schema[key], list):
                raise GrammarError(f"{place}.{key} is {schema[key]!r:.60}, expected a list")
            for i, part in enumerate(schema[key]):
                _check(part, f"{place}.{key}[{i}]", depth + 1)
    for key in _MAPS:
        if key in schema:
            if not isinstance(schema[key], Mapping):
                raise GrammarError(f"{place}.{key} is {schema[key]!r:.60}, expected an object")
            for name, part in schema[key].items():
                _check(part, f"{place}.{key}.{_shown(name)}", depth + 1)


def _shown(name: object) -> str:
    """Return a name, or the beginning of a long one: a pattern may have thousands of characters."""
    text = str(name)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _parts(schema: Mapping[str, Any]) -> list[Any]:
    """Return the schemas inside a schema."""
    parts = [schema[key] for key in _SCHEMAS if key in schema]
    for key in _LISTS:
        parts += schema.get(key, [])
    for key in _MAPS:
        parts += schema.get(key, {}).values()
    return parts


def _combines(schema: Any) -> bool:
    """Return whether somewhere two schemas describe the same object together."""
    if isinstance(schema, bool):
        return False
    refers = any(key in schema for key in ("$ref", "anyOf", "oneOf")) and "properties" in schema
    return "allOf" in schema or refers or any(_combines(part) for part in _parts(schema))


def _close(schema: Any) -> None:
    """Leave out keys that a schema does not name: allowed, but seldom wanted from a model."""
    if isinstance(schema, bool):
        return
    if "properties" in schema and "patternProperties" not in schema:
        schema.setdefault("additionalProperties", False)
    for part in _parts(schema):
        _close(part)


def _leave_out_empty(schema: Any) -> None:
    """Leave out keywords that say nothing: llguidance refuses them whatever they say."""
    if isinstance(schema, bool):
        return
    for keyword in _EMPTY:
        schema.pop(keyword, None)
    for part in _parts(schema):
        _leave_out_empty(part)


def _round_bounds(schema: Any) -> None:
    """Replace exclusive bounds by the next float, where numbers may have a fraction.

    24.0000000000000001 is above 24, but programs read it as 24.0. Rounding keeps order, so what is
    at least the next float is read as at least that. Beside 0 it has 324 digits: that bound stays.
    """
    if isinstance(schema, bool):
        return
    for exclusive, inclusive, towards, tighter in _BOUNDS:
        bound = schema.get(exclusive)
        if schema.get("type") == "integer" or not isinstance(bound, (int, float)) or not bound:
            continue
        if abs(bound) < _LARGEST:
            del schema[exclusive]
            following = math.nextafter(bound, towards)
            schema[inclusive] = tighter(schema.get(inclusive, following), following)
    for part in _parts(schema):
        _round_bounds(part)


def _check_drafts(schema: Mapping[str, Any], place: str) -> None:
    """Refuse keywords that older drafts use in another way."""
    if isinstance(schema.get("items"), list):
        raise GrammarError(f"{place}.items is a list, as before draft 2020-12; use prefixItems")
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(key), bool):
            raise GrammarError(f"{place}.{key} is true or false, as in draft 4; give the number")


def _check_keys(schema: Mapping[str, Any], place: str) -> None:
    """Refuse numbers of keys that equal keys would break: nothing keeps those from coming twice."""
    least, required = schema.get("minProperties"), schema.get("required", [])
    known = len(required) if isinstance(required, list) else 0
    if isinstance(least, (int, float)) and least > max(1, known):
        raise GrammarError(
            f"{place}: unsupported minProperties of {least:g} where {known} keys are required; "
            "name them under properties and required"
        )
