"""Random JSON schemas, nested, with every kind of value that structured output supports."""

from __future__ import annotations

import random
from typing import Any

WORDS = [
    "name",
    "age",
    "city",
    "price",
    "tags",
    "kind",
    "date",
    "items",
    "note",
    "size",
    "colour",
    "count",
    "parent",
    "email",
    "id",
]


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema of an object, with nested ones up to a depth."""
    names = rng.sample(WORDS, rng.randint(1, 4))
    properties = {name: random_value(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    extra = rng.random()
    if extra < 0.3:
        schema["additionalProperties"] = False
    elif extra < 0.4:
        schema["additionalProperties"] = {"type": "integer", "maximum": 9, "minimum": 0}
    if depth == 3 and rng.random() < 0.1:  # a pointer begins at the whole schema
        schema["$defs"] = {"part": random_value(rng, 1)}
        properties[rng.choice(names)] = {"$ref": "#/$defs/part"}
    return schema


def random_value(rng: random.Random, depth: int) -> dict[str, Any]:
    """A schema of any value."""
    low = rng.randint(-50, 50)
    kinds: list[Any] = [
        lambda: {"type": "string", "maxLength": rng.randint(0, 16)},
        lambda: {"type": "string", "minLength": 2, "maxLength": rng.randint(2, 12)},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-z]{2,6}$", "^\\d{3}-\\d{2}$", "x"])},
        lambda: {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time", "email"])},
        lambda: {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)},
        lambda: {"type": "integer", "multipleOf": rng.choice([2, 5, 10]), "minimum": 0},
        lambda: {"type": "number", "exclusiveMinimum": low, "maximum": low + 7.5},
        lambda: {"type": "boolean"},
        lambda: {"type": rng.choice([["string", "null"], ["integer", "boolean"]]), "maxLength": 9},
        lambda: {"enum": rng.sample(["a", "b c", 'd"e', "é\n", 1, 2.5, None, True, [1], {}], 3)},
        lambda: {"const": rng.choice(["x", 7, None, {"k": [1, "<|im_end|>"]}])},
    ]
    if depth > 0:
        kinds += [
            lambda: random_schema(rng, depth),
            lambda: {
                "type": "array",
                "items": random_value(rng, depth - 1),
                "minItems": rng.randint(0, 1),
                "maxItems": rng.randint(1, 3),
            },
            lambda: {
                "type": "array",
                "prefixItems": [random_value(rng, 0) for _ in range(2)],
                "items": False,
                "minItems": 1,
            },
            lambda: {"anyOf": [random_value(rng, depth - 1), random_value(rng, 0)]},
            lambda: {
                "type": "object",
                "additionalProperties": random_value(rng, 0),
                "maxProperties": 2,
            },
        ]
    made: dict[str, Any] = rng.choice(kinds)()
    return made
