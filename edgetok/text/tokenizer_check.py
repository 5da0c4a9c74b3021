"""Opening a stranger's `tokenizer.json`: whatever would fail, hang or grow later fails here.

`tokenizers` reads files that it cannot use: an unknown token that is not in the vocabulary raises
at the first unknown character, a chunk of length 0 panics, and a regular expression may take years.
So the steps are looked at, and a probe text goes through all of them and back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

from edgetok.errors import UserError
from edgetok.formats.foreign import foreign, silent_stderr

MAX_STEPS = 256
MAX_GROWTH = 64
MAX_PATTERN_CHARS = 4096
MAX_UNBOUNDED = 3
MAX_REPEATS = 100  # in use are at most 5
MAX_ADDED_CHARS = 4096  # of an added token: looking for it takes time for each
# A thing that may be there or not counts as a quarter of one that repeats without bound, and so
# does one of few possible lengths.
_BOUNDED, _FEW = 0.25, 8

# Letters with and without accents, digits, white space, scripts, an emoji, and a character that no
# vocabulary has, so that the unknown token is needed where there is one.
_PROBE = "Hello wörld's 42 \t\r\n  é 你好, こんにちは! <x> 😀\U000f0000 aaaaaaaa\u0300"
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def open_core(data: bytes, name: str, error: type[UserError]) -> tokenizers.Tokenizer:
    """Parse and check a `tokenizer.json`.

    Truncation and padding that the file asks for are switched off: they silently shorten a prompt.

    Args:
        data: the file.
        name: its name, for messages.
        error: class of what is raised.

    Raises:
        UserError: of class `error`: it is damaged, or would fail, hang or use much memory later.
    """
    _check_added(data, name, error)
    remedy = "save it anew with a current release of transformers"
    with silent_stderr():
        with foreign(f"{name}: not readable as a tokenizer", error, remedy):
            core = tokenizers.Tokenizer.from_buffer(data)
            core.no_truncation()
            core.no_padding()
            states = {part: _state(getattr(core, part)) for part in _PARTS}
            dropout = getattr(core.model, "dropout", None)
        if dropout:
            raise error(
                f"{name}: model has dropout {dropout:g}, which gives a text other tokens each "
                "time; remove it"
            )
        for part, state in states.items():
            _check_part(f"{name}: {part}", state, error)
        with foreign(f"{name}: fails on a text that was tried", error, "repair the tokenizer"):
            core.decode(core.encode(_PROBE).ids)
    return core


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _check_part(what: str, state: Any, error: type[UserError]) -> None:
    growth = 1.0
    for count, step in enumerate(_steps(state)):
        if count >= MAX_STEPS:
            raise error(f"{what} has more than {MAX_STEPS} steps")
        pattern = step.get("pattern")
        if isinstance(pattern, dict):
            if isinstance(pattern.get("Regex"), str):
                fault = pattern_fault(pattern["Regex"])
                if fault:
                    raise error(
                        f"{what}: the expression {pattern['Regex']!r:.60} {fault}; write it anew"
                    )
            if step.get("type") == "Replace":
                growth *= max(1.0, _growth(pattern, str(step.get("content", ""))))
        if growth > MAX_GROWTH:
            raise error(f"{what} makes a text more than {MAX_GROWTH} times as long")
        if step.get("type") == "FixedLength" and step.get("length") == 0:
            raise error(f"{what}: FixedLength has length 0, expected 1 or more")


def _growth(pattern: dict[str, Any], content: str) -> float:
    """Characters that a replacement makes of one."""
    text = pattern.get("String")
    if isinstance(text, str):
        return len(content) / len(text) if text else len(content) + 1
    return len(content) + 1


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    stack = [state]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if "type" in item:
                yield item
            stack.extend(value for value in item.values() if isinstance(value, (dict, list)))
        elif isinstance(item, list):
            stack.extend(value for value in item if isinstance(value, (dict, list)))


_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d*)(,?)(\d*)\})[?+]?")
_TOO_VARIED = f"repeats more than {MAX_UNBOUNDED} things without bound in one alternative"
_GROUP = re.compile(r"\?(?:[imWDSPyo-]*:|<?[=!]|>|<[A-Za-z_]\w*>|[im-]+(?=\)))")


def pattern_fault(pattern: str) -> str | None:
    """Why a regular expression may take exponential or steeply polynomial time; None if it may not.

    A group that is repeated must be of fixed length: no alternative, nothing repeated or optional
    in it. One alternative repeats at most `MAX_UNBOUNDED` things without bound, and has few that
    are optional. Nothing is repeated a counted `MAX_REPEATS` times. The expressions of all
    tokenizers in wide use pass.

    Source: Oniguruma's doc/RE; `x{1,3}+` is a repeated `x{1,3}` there, and is not possessive.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        return f"has {len(pattern):,} characters, expected at most {MAX_PATTERN_CHARS:,}"
    # A frame for each open group: does it vary in length, and how much of it repeats unbounded.
    varies, unbounded, most = [False], [0.0], [0.0]
    at, atom_varies = 0, False
    while at < len(pattern):
        char = pattern[at]
        quantifier = _QUANTIFIER.match(pattern, at) if char in "*+?{" else None
        if quantifier is not None:
            low, comma, high = quantifier.groups()
            sign, last = quantifier[0][0], quantifier[0].endswith("}+")
            if last and (len(varies) > 1 or pattern[quantifier.end() :][:1] not in ("", "|")):
                return "repeats a counted repetition and goes on after it"
            endless = sign in "*+" or (comma == "," and not high) or last
            counted = int(high or low or 0) if sign == "{" else 0
            if counted > MAX_REPEATS:
                return f"repeats something {counted:,} times, expected at most {MAX_REPEATS}"
            once = sign == "?" or (sign == "{" and not endless and counted <= 1)
            if atom_varies and not once:
                return "repeats something that repeats or varies in itself"
            optional = sign == "?" or quantifier[0].endswith("}?")
            varies[-1] |= endless or optional or bool(comma)
            if endless or (comma and counted - int(low or 0) > _FEW):
                unbounded[-1] += 1
            elif optional or comma:
                unbounded[-1] += _BOUNDED
            if unbounded[-1] >= MAX_UNBOUNDED + 1:
                return _TOO_VARIED
            at, atom_varies = quantifier.end(), True
            continue
        atom_varies = False
        if char == "\\":
            if pattern[at + 1 : at + 2] in tuple("123456789kgG"):
                return "refers back to what it found"
            at += 2
            if pattern[at - 1 : at + 1] in ("p{", "P{", "x{", "o{"):
                at = pattern.find("}", at) + 1 or len(pattern)
        elif char == "[":
            at = _class_end(pattern, at)
        elif char == "(":
            kind = _GROUP.match(pattern, at + 1)
            if pattern[at + 1 : at + 2] == "?" and kind is None:
                return "has a group of a kind that no tokenizer needs"
            varies.append(False)
            unbounded.append(0.0)
            most.append(0.0)
            at = kind.end() if kind else at + 1
        elif char == ")" and len(varies) > 1:
            atom_varies = varies.pop()
            varies[-1] |= atom_varies
            inner = max(unbounded.pop(), most.pop())
            unbounded[-1] += inner
            if unbounded[-1] >= MAX_UNBOUNDED + 1:
                return _TOO_VARIED
            at += 1
        elif char == "|":
            most[-1] = max(most[-1], unbounded[-1])
            unbounded[-1] = 0.0
            if len(varies) > 1:
                varies[-1] = True
            at += 1
        else:
            at += 1
    return None


def _class_end(pattern: str, at: int) -> int:
    """Return the end of a class of characters, which may hold others."""
    depth = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            depth += 1
            at += pattern[at + 1 : at + 2] == "^"
            at += pattern[at + 1 : at + 2] == "]"
        elif char == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return at


def _check_added(data: bytes, name: str, error: type[UserError]) -> None:
    """Refuse added tokens without text, or of very much.

    Some releases of `tokenizers` drop the former without a word. Only the list of added tokens is
    parsed: the whole file may be tens of megabytes.
    """
    match = re.search(rb'"added_tokens"\s*:\s*(?=\[)', data)
    if match is None:
        return
    try:
        added, _ = json.JSONDecoder().raw_decode(data[match.end() :].decode("utf-8"))
    except (ValueError, RecursionError) as failure:
        raise error(f"{name}: not readable as a tokenizer: added_tokens: {failure}") from failure
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str):
            raise error(f"{name}: added_tokens holds {token!r:.60}, expected content that is text")
        if not content:
            raise error(
                f"{name}: added token {token.get('id')!r:.20} is empty and would match everywhere; "
                "remove it from added_tokens"
            )
        check_length(content, f"{name}: added_tokens", error)


def check_length(content: str, what: str, error: type[UserError]) -> None:
    """Refuse an added token of more than `MAX_ADDED_CHARS` characters.

    Raises:
        UserError: an error of class `error`, where it has more.
    """
    if len(content) > MAX_ADDED_CHARS:
        raise error(
            f"{what} holds a token of {len(content):,} characters, expected at most "
            f"{MAX_ADDED_CHARS:,}: {content[:20]!r} ...; remove it"
        )
