"""Detection of a model's dialect from its chat template and its vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from edgetok.dialect.families import (
    FORMATS,
    GENERIC,
    SWITCHES,
    THINKING,
    UNSUPPORTED,
    CallFormat,
    Thinking,
)

_TOOL_ROLE = re.compile(r"""["'](tool|ipython|tool_response|tool_results)["']""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A model's format of calls and of reasoning.

    Attributes:
        calls: format of tool calls.
        thinking: markers of reasoning; None for a model that does not reason.
        writes_tools: whether the chat template writes the tools it is given.
        writes_calls: whether it writes the calls of earlier answers.
        writes_results: whether it knows messages with the role of a tool.
        switches: the template's variables that turn reasoning on and off.
        takes_effort: whether the template has a variable for the effort.
        reason: the part of the template that showed it, for `edgetok inspect` and messages.
    """

    calls: CallFormat
    thinking: Thinking | None
    writes_tools: bool
    writes_calls: bool
    writes_results: bool
    switches: tuple[str, ...]
    takes_effort: bool
    reason: str


def detect(source: str, names: frozenset[str], knows: Callable[[str], bool]) -> Dialect:
    """Return the dialect of a model.

    Args:
        source: source of the chat template.
        names: variables that the template looks at.
        knows: whether a text is one token of the vocabulary.
    """
    known = True
    calls, reason = GENERIC, "the template has no format of its own"
    for sign, what in UNSUPPORTED.items():
        if sign in source:
            reason = f"the template has {sign!r}: {what} are not supported"
            known = False
            break
    else:
        for one in FORMATS:
            if all(sign in source for sign in one.signs):
                calls, reason = one, f"the template has {' and '.join(map(repr, one.signs))}"
                break
    named = [one for one in THINKING if one.end in source]
    known_markers = [one for one in THINKING if knows(one.begin) and knows(one.end)]
    thinking = next(iter(named + known_markers), None)
    return Dialect(
        calls=calls,
        thinking=thinking,
        writes_tools=known and not calls.own_prompt and ("tools" in names or calls.attached),
        writes_calls=known and "tool_calls" in source,
        writes_results=known and (bool(_TOOL_ROLE.search(source)) or calls.attached),
        switches=tuple(name for name in SWITCHES if name in names),
        takes_effort="reasoning_effort" in names,
        reason=reason,
    )
