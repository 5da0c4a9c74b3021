"""Rules for an answer: a JSON schema, a regular expression, texts to choose from, a grammar.

A definition belongs to no model. `edgetok.grammar.vocabulary` makes a constraint of it, for one
model's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetok.errors import GrammarError
from edgetok.grammar.schema import checked_schema

MAX_SOURCE_BYTES = 1 << 20
MAX_DEPTH = 100  # of parentheses; llguidance has a bound of its own, this one names the text


@dataclass(frozen=True, slots=True)
class Grammar:
    """A rule that an answer must match. Make one with the functions below.

    Attributes:
        kind: "JSON schema", "regular expression", "choice" or "Lark grammar", for messages.
        source: how llguidance reads it, as JSON: {"json_schema": ...} or {"lark_grammar": ...}.
    """

    kind: str
    source: str

    @classmethod
    def json_schema(cls, schema: object) -> Grammar:
        """Accept JSON that a schema (draft 2020-12) describes.

        Args:
            schema: a mapping, its JSON text, or a pydantic model class.

        Raises:
            GrammarError: it is not a schema, or has a keyword that cannot be held.
        """
        return cls("JSON schema", _source("json_schema", checked_schema(schema)))

    @classmethod
    def json_object(cls) -> Grammar:
        """Accept any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Accept texts that a regular expression matches as a whole.

        The syntax is that of Rust's regex crate: no look-around and no back references.

        Raises:
            GrammarError: it is nested too deeply or too long.
        """
        _check_text("regular expression", pattern)
        # Lark ends a regular expression at a slash; an escaped one is left alone.
        escaped = "".join(
            "\\/" if part == "/" else part.replace("\n", "\\n") for part in _characters(pattern)
        )
        return cls("regular expression", _source("lark_grammar", f"start: /{escaped}/"))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """Accept exactly one of some texts.

        Raises:
            GrammarError: there is none, or one is empty.
        """
        listed: object = texts
        if not isinstance(listed, (list, tuple)) or not listed or not all(map(_is_text, listed)):
            raise GrammarError(f"choice is {texts!r:.80}, expected a list of texts, none empty")
        terminal = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        # A terminal is one automaton; rules are a row each in the parser, which takes 2,000.
        return cls("choice", _source("lark_grammar", f"start: TEXT\nTEXT: {terminal}"))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Accept what llguidance's dialect of Lark describes from `start` on.

        Raises:
            GrammarError: it is nested too deeply or too long.
        """
        _check_text("Lark grammar", text)
        return cls("Lark grammar", _source("lark_grammar", text))

    @classmethod
    def asked(cls, schema: object = None, grammar: object = None) -> Grammar | None:
        """Return the grammar that the options `schema` and `grammar` ask for; None for neither.

        Raises:
            GrammarError: both are given, or as the functions above.
        """
        if schema is not None and grammar is not None:
            raise GrammarError("schema conflicts with grammar; remove one")
        if schema is not None:
            return cls.json_schema(schema)
        return None if grammar is None else cls.of(grammar)

    @classmethod
    def of(cls, given: object) -> Grammar:
        """Return the grammar that a value of an option means.

        Args:
            given: a `Grammar`; a list of texts to choose from; or a mapping with one of the keys
                "json_schema", "regex", "choice" and "lark".

        Raises:
            GrammarError: it is none of these.
        """
        if isinstance(given, Grammar):
            return given
        if isinstance(given, (list, tuple)):
            return cls.choice(given)
        makers = {
            "json_schema": cls.json_schema,
            "regex": cls.regex,
            "choice": cls.choice,
            "lark": cls.lark,
        }
        if isinstance(given, Mapping) and len(given) == 1:
            key, value = next(iter(given.items()))
            if key in makers:
                maker: Any = makers[key]
                made: Grammar = maker(value)
                return made
        raise GrammarError(
            f"grammar is {given!r:.80}, expected a Grammar, a list of texts to choose from, or "
            f"a mapping with one of {', '.join(makers)}"
        )


def _is_text(one: object) -> bool:
    return isinstance(one, str) and bool(one)


def _source(key: str, value: object) -> str:
    text = json.dumps({key: value})
    if len(text) > MAX_SOURCE_BYTES:
        raise GrammarError(
            f"the grammar has {len(text):,} bytes, expected at most {MAX_SOURCE_BYTES:,}"
        )
    return text


def _check_text(kind: str, text: object) -> None:
    """Refuse what is no text, too long, or nested so deeply that a parser may run out of stack."""
    if not isinstance(text, str) or not text:
        raise GrammarError(f"the {kind} is {text!r:.80}, expected a text")
    if len(text) > MAX_SOURCE_BYTES:
        raise GrammarError(
            f"the {kind} has {len(text):,} characters, expected at most {MAX_SOURCE_BYTES:,}"
        )
    depth = most = 0
    for part in _characters(text):
        depth += (part in ("(", "[", "{")) - (part in (")", "]", "}"))
        most = max(most, depth)
    if most > MAX_DEPTH:
        raise GrammarError(
            f"the {kind} nests {most:,} brackets, expected at most {MAX_DEPTH}; make it flatter"
        )


def _characters(text: str) -> list[str]:
    """Split a text into characters; a backslash and what it escapes are one."""
    parts, i = [], 0
    while i < len(text):
        size = 2 if text[i] == "\\" and i + 1 < len(text) else 1
        parts.append(text[i : i + size])
        i += size
    return parts
