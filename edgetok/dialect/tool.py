"""Tools, calls of them, and the pieces of an answer."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetok.errors import OptionError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID = string.ascii_letters + string.digits
MAX_TOOLS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask for.

    Attributes:
        name: 1 to 64 letters, digits, `_`, `.` and `-`.
        description: its purpose, for the model to read.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )

    def __post_init__(self) -> None:
        """Refuse what no template could write.

        Raises:
            OptionError: a name or the parameters are invalid.
        """
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise OptionError(
                f"a tool is named {self.name!r:.80}, expected 1 to 64 letters, digits and '_.-'"
            )
        if not isinstance(self.description, str):
            raise OptionError(f"tool {self.name}: the description is not a text")
        if not isinstance(self.parameters, Mapping):
            raise OptionError(f"tool {self.name}: parameters is not a JSON schema of an object")

    @property
    def json(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


def tools_of(given: object) -> tuple[Tool, ...]:
    """Return tools from what an app handed in.

    Args:
        given: None, or `Tool`s and mappings: {"type": "function", "function": {"name", ...}}, or
            {"name", "description", "parameters"} without the frame.

    Raises:
        OptionError: it is something else, or two tools have the same name.
    """
    if given is None:
        return ()
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise OptionError(f"tools is {given!r:.80}, expected a list of tools")
    if len(given) > MAX_TOOLS:
        raise OptionError(f"{len(given):,} tools were given, expected at most {MAX_TOOLS}")
    tools = tuple(_tool(one) for one in given)
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"two tools are named {name!r}; rename one")
    return tools


def _tool(given: object) -> Tool:
    if isinstance(given, Tool):
        return given
    if not isinstance(given, Mapping):
        raise OptionError(f"a tool is {given!r:.80}, expected an object with name and parameters")
    function = given.get("function", given)
    if given.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise OptionError(f"a tool is {given!r:.80}, expected one of type 'function'")
    values: dict[str, Any] = {"name": function.get("name", "")}
    for key in ("description", "parameters"):
        if function.get(key) is not None:
            values[key] = function[key]
    return Tool(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asked for.

    Attributes:
        id: names the call where its result is handed in.
        name: name of the tool.
        arguments: JSON text, valid by the tool's parameters unless the answer was cut.
    """

    id: str
    name: str
    arguments: str

    @property
    def values(self) -> dict[str, Any]:
        """The arguments as Python values.

        Raises:
            ValueError: the answer was cut inside them.
        """
        values: dict[str, Any] = json.loads(self.arguments)
        return values


def new_call_id(prefix: str = "") -> str:
    """Return an id that is not used again: nine letters and digits, as Mistral's models want."""
    return prefix + "".join(secrets.choice(_ID) for _ in range(9))


# Pieces of an answer, in the order in which they come.


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Text that the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call begins; pieces of its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of the call with this index."""

    index: int
    text: str


AnswerPiece = ReasoningPiece | TextPiece | CallBegin | CallArguments
