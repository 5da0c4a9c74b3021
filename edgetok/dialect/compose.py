"""One grammar for a whole answer: reasoning, then text, a grammar of the user's, or tool calls.

It is written in llguidance's dialect of Lark, with the schemas of arguments as grammars beside it.
A marker that is text ends a lexeme lazily, at its first occurrence; one that is a special token
cannot be part of text at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgetok.dialect.families import CallFormat, Thinking
from edgetok.dialect.tool import Tool
from edgetok.errors import GrammarError
from edgetok.grammar.definition import Grammar

MOST_CALLS = 16
"""Calls of one answer: a model that repeats itself ends here."""

Opening = Literal["open", "possible", "off"]
"""Whether the answer begins inside reasoning, may begin with it, or has none."""


def compose(
    *,
    thinking: Thinking | None,
    opening: Opening,
    calls: CallFormat | None,
    tools: Sequence[Tool],
    must_call: bool,
    parallel: bool,
    grammar: Grammar | None,
    special: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return llguidance's grammars of an answer.

    Args:
        thinking: markers of reasoning; None for none.
        opening: where the answer begins.
        calls: format of calls; None where none can be made.
        tools: that can be called.
        must_call: whether the answer has to be a call.
        parallel: whether it may be several.
        grammar: the rule that an answer other than a call must match.
        special: ids of special tokens by their text.

    Raises:
        GrammarError: parameters of a tool cannot be held.
    """
    lark = _Lark(special)
    before = ""
    if thinking is not None and opening != "off":
        before = lark.reasoning(thinking, opening)
    grammars: list[dict[str, Any]] = []
    answers = []
    if not (must_call and calls is not None):
        if grammar is None:
            answers.append(lark.text(calls))
        else:
            grammars.append({"name": "answer", **json.loads(grammar.source)})
            answers.append(f"{lark.gap()} @answer" if before else "@answer")
    if calls is not None:
        free = not must_call and grammar is None
        gap = f"{lark.gap()} " if before and not free else ""  # free text takes the space in
        answers.append(gap + lark.calls(calls, tools, parallel=parallel, free=free))
        for i, tool in enumerate(tools):
            try:
                schema = Grammar.json_schema(tool.parameters)
            except GrammarError as error:
                raise GrammarError(f"tool {tool.name}: {error}") from error
            grammars.append({"name": f"args_{i}", **json.loads(schema.source)})
    lark.rule("start", f"{before} answer")
    lark.rule("answer", " | ".join(answers))
    return [{"lark_grammar": lark.source}, *grammars]


class _Lark:
    """Collects rules."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        self._rules: dict[str, str] = {}
        split = "|".join(re.escape(text) for text in sorted(special, key=len, reverse=True) if text)
        self._split = re.compile(f"({split})") if split else None

    @property
    def source(self) -> str:
        return "\n".join(f"{name}: {body}" for name, body in self._rules.items())

    def rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def literal(self, text: str) -> str:
        """Return a text as strings and special tokens."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(
            f"<[{self._special[part]}]>" if part in self._special else _quoted(part)
            for part in parts
            if part
        )

    def reasoning(self, thinking: Thinking, opening: Opening) -> str:
        end = self._until("think", thinking.end)
        if opening == "open":
            return end
        begin = self.literal(thinking.begin)
        if thinking.begin not in self._special:
            begin = self.rule("opener[lazy]", _regex(thinking.begin)).partition("[")[0]
        return f"({begin} {end})?"

    def gap(self) -> str:
        """Return what may stand between reasoning and a grammar."""
        return self.rule("gap", r"/[ \n]{0,3}/")

    def text(self, calls: CallFormat | None) -> str:
        """Return any text; where calls have no marker, one that does not begin like a call."""
        body = _regex("", "(?s:.*)")
        if calls is not None and not calls.trigger:
            body += " & ~" + _regex(calls.before_name, r"\s*", "(?s:.*)")
        return self.rule("TEXT", body)

    def calls(self, calls: CallFormat, tools: Sequence[Tool], *, parallel: bool, free: bool) -> str:
        """Return calls; `free` where text may stand before them."""
        for i, tool in enumerate(tools):
            text = f"{calls.before_name}{tool.name}{calls.before_arguments}"
            # Beside any text, what begins a call has to be one lexeme with the space before it.
            head = self.literal(text) if calls.trigger or not free else _regex(text, r"[ \n]{0,3}")
            self.rule(f"call_{i}", f"{head} @args_{i} {self.literal(calls.after)}")
        self.rule("call", " | ".join(f"call_{i}" for i in range(len(tools))))
        more = ""
        if parallel and calls.between is not None:
            more = f" ({self.literal(calls.between)} call){{0,{MOST_CALLS - 1}}}"
        first, begin = "call", self.literal(calls.begin)
        if calls.optional in self._special:
            begin = f"<[{self._special[calls.optional]}]>? {begin}"
        if free and calls.trigger:
            rest = calls.begin.removeprefix(calls.trigger)
            if not calls.begin:  # the marker belongs to each call
                rest, first = "", self._unmarked(calls, tools)
            if calls.trigger in self._special:
                begin = f"TEXT? {self.literal(calls.trigger)} {self.literal(rest)}"
            else:
                begin = f"{self._until('to_calls', calls.trigger)} {self.literal(rest)}"
        return self.rule("calls", f"{begin} {first}{more} {self.literal(calls.end)}")

    def _unmarked(self, calls: CallFormat, tools: Sequence[Tool]) -> str:
        """Return the first call without the marker before its name."""
        rest = calls.before_name.removeprefix(calls.trigger)
        for i, tool in enumerate(tools):
            head = self.literal(f"{rest}{tool.name}{calls.before_arguments}")
            self.rule(f"first_{i}", f"{head} @args_{i} {self.literal(calls.after)}")
        return self.rule("first", " | ".join(f"first_{i}" for i in range(len(tools))))

    def _until(self, name: str, marker: str) -> str:
        """Return any text up to a marker, which is included."""
        if marker in self._special:
            self.rule(name.upper(), _regex("", "(?s:.*)"))
            return self.rule(name, f"{name.upper()}? {self.literal(marker)}")
        self.rule(f"{name}[lazy]", _regex(marker, "(?s:.*)"))
        return name


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(literal: str, before: str = "", after: str = "") -> str:
    """Return a Lark regular expression: a literal text between two patterns."""
    escaped = re.escape(literal).replace("\n", "\\n").replace("/", "\\/").replace("\\ ", " ")
    return f"/{before}{escaped}{after}/"
