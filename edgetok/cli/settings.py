"""Sampling options as people type and read them in the chat: names, values, near misses."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection
from typing import Any, get_args, get_type_hints

from edgetok.cli.streams import (
    unescape,
)
from edgetok.errors import OptionError
from edgetok.quantities import parse_tokens
from edgetok.sampling.options import SamplingOptions

_NOTHING = ("-", "none", "off", "no", "default")
_YES = ("on", "yes", "true", "1")
_NO = ("off", "no", "false", "0")
_WITHOUT = {"seed": "random", "max_tokens": "what fits", "max_seconds": "no limit"}

NAMES = tuple(name for name in get_type_hints(SamplingOptions) if name != "logprobs")
"""Options of the chat: log-probabilities are not shown in it."""


def find(typed: str, known: Collection[str], what: str) -> str:
    """Return the name that was meant: the whole name, or the only one that begins so.

    Args:
        typed: a name, or its beginning.
        known: all names.
        what: they are, for messages: "option".

    Raises:
        OptionError: it is none of them, or could be several.
    """
    if typed in known:
        return typed
    begin = [name for name in known if name.startswith(typed)] if typed else []
    if len(begin) == 1:
        return begin[0]
    if begin:
        raise OptionError(f"{typed} could be {' or '.join(begin)}")
    near = difflib.get_close_matches(typed, known, n=1) or _near_beginning(typed, known)
    if near:
        raise OptionError(f"unknown {what} {typed}; did you mean {near[0]}?")
    raise OptionError(f"unknown {what} {typed}; use one of {', '.join(known)}")


def _near_beginning(typed: str, known: Collection[str]) -> list[str]:
    """Return the name that begins most nearly so, as temperature does for tmp; at most one."""
    beginnings = {name[: len(typed) + 1]: name for name in known}
    return [beginnings[near] for near in difflib.get_close_matches(typed, beginnings, n=1)]


def parse_assignment(text: str) -> tuple[str, str]:
    """Return name and value of "temp 0.5", "temp=0.5" or "temp: 0.5"; "" for no value.

    Raises:
        OptionError: there is no such option.
    """
    place = next((i for i, char in enumerate(text) if char in " =:"), len(text))
    typed = text[:place].lower().replace("-", "_")
    return find(typed, NAMES, "option"), text[place:].lstrip(" =:").strip()


def parse_setting(name: str, text: str) -> object:
    """Return the value that was typed for a sampling option.

    Raises:
        OptionError: the option is unknown, or the text is not a value of it.
    """
    kinds = get_type_hints(SamplingOptions)
    if name not in kinds:
        raise OptionError(f"unknown option {name!r}; use one of {', '.join(NAMES)}")
    if name == "stop":
        return () if text in _NOTHING else (unescape(_unquoted(text)),)
    if kinds[name] is bool:
        if text.lower() not in _YES + _NO:
            raise OptionError(f"{name} is {text!r}, expected on or off")
        return text.lower() in _YES
    inner = set(get_args(kinds[name])) - {type(None)} or {kinds[name]}
    if inner != {kinds[name]} and text.lower() in (*_NOTHING, _WITHOUT.get(name)):
        return None
    if name == "max_tokens":
        return parse_tokens(text)
    with contextlib.suppress(ValueError):
        return float(text) if float in inner else int(text)
    raise OptionError(f"{name} is {text!r}, expected a number")


def shown(name: str, value: Any) -> str:
    """Return a value as people write it."""
    if value is None:
        return _WITHOUT.get(name, "none")
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(f'"{_escaped(text)}"' for text in value) or "none"
    if name == "top_k" and value == 0:
        return "0 (all)"
    if name == "max_seconds":
        return f"{value:g} s"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unquoted(text: str) -> str:
    quoted = len(text) > 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")
