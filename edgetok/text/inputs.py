"""Check what an app hands in: prompts, messages and tools.

Anything else than what is expected here is an `OptionError` that names its place, so that a wrong
argument does not show up as a `TypeError` deep in a template or as an answer to the wrong prompt:
bytes, for one, would pass as a list of token ids.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

from edgetok.errors import OptionError

_MOST_DEPTH = 32  # of nested lists and objects in a message or tool


def checked_prompt(prompt: object, vocab_size: int) -> str | list[int]:
    """Return a prompt as text or a list of token ids.

    Args:
        prompt: a text, or integers.
        vocab_size: every id is below it.

    Raises:
        OptionError: it is something else, or an id is out of range.
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, (bytes, bytearray, memoryview, Mapping)) or not isinstance(
        prompt, Iterable
    ):
        raise OptionError(f"the prompt is {_kind(prompt)}, expected a text or a list of token ids")
    ids = []
    for place, token in enumerate(prompt):
        number = _whole(token)
        if number is None:
            raise OptionError(f"prompt[{place}] is {_kind(token)}, expected a token id")
        if not 0 <= number < vocab_size:
            raise OptionError(f"token {number} in the prompt, expected 0 to {vocab_size - 1}")
        ids.append(number)
    return ids


def checked_prompts(prompts: object) -> Iterable[Any]:
    """Return the prompts of a batch.

    Raises:
        OptionError: it is one text, or not a list.
    """
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise OptionError(f"prompts is {_kind(prompts)}, expected a list of prompts")
    return prompts


def checked_progress(progress: object) -> Any:
    """Return a function that is told how far something is; None for none.

    Raises:
        OptionError: it cannot be called.
    """
    if progress is not None and not callable(progress):
        raise OptionError(f"progress is {_kind(progress)}, expected a function of (done, in all)")
    return progress


def checked_path(path: object) -> str | os.PathLike[str]:
    """Return a path.

    Raises:
        OptionError: it is something else, or an empty text, which would mean the current folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OptionError(f"the path is {_kind(path)}, expected a text or a Path")
    if path == "":
        raise OptionError("the path is empty, expected a file or folder")
    return path


def checked_text(name: str, text: object) -> str:
    """Return a text.

    Raises:
        OptionError: it is something else.
    """
    if not isinstance(text, str):
        raise OptionError(f"{name} is {_kind(text)}, expected a text")
    return text


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """Return messages as a template takes them: JSON objects with a role.

    Args:
        messages: each a mapping with "role" and, mostly, "content": a text, None, or a list of
            parts such as {"type": "text", "text": "..."}.

    Raises:
        OptionError: it is something else, or there is none.
    """
    made = _objects(messages, "messages")
    if not made:
        raise OptionError("messages is empty, expected at least one")
    for place, message in enumerate(made):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise OptionError(
                f'messages[{place}] has the role {role!r:.40}, expected a text such as "user"'
            )
        if content is not None and not isinstance(content, (str, list)):
            raise OptionError(
                f"messages[{place}]: content is {_kind(content)}, expected a text, None or a list "
                "of parts"
            )
    return made


def joined_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return checked messages with parts of text joined, as a model of text reads them.

    Raises:
        OptionError: a part is something else than a text.
    """
    made = []
    for place, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            for i, part in enumerate(content):
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind != "text" or not isinstance(part.get("text"), str):
                    raise OptionError(
                        f"messages[{place}]: content[{i}] is {part!r:.60}, expected a part such as "
                        '{"type": "text", "text": "..."}; the model reads text alone'
                    )
            message = {**message, "content": "".join(part["text"] for part in content)}
        made.append(message)
    return made


def checked_tools(tools: object) -> list[dict[str, Any]] | None:
    """Return descriptions of tools as a template takes them; None for none.

    Args:
        tools: JSON objects such as {"type": "function", "function": {"name": ...}}; or None.

    Raises:
        OptionError: it is something else.
    """
    return _objects(tools, "tools") or None if tools is not None else None


def checked_variables(variables: object) -> dict[str, Any]:
    """Return what a template may look at beside messages and tools.

    Raises:
        OptionError: it is not an object of JSON values, or replaces messages or tools.
    """
    if variables is None:
        return {}
    (made,) = _objects([variables], "chat_template_kwargs")
    for name in ("messages", "tools", "add_generation_prompt"):
        if name in made:
            raise OptionError(f"chat_template_kwargs must not hold {name!r}")
    return made


def _whole(value: Any) -> int | None:
    """Return a value as an integer, NumPy's integers included; None where it is not one."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _objects(given: object, name: str) -> list[dict[str, Any]]:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(f"{name} is {_kind(given)}, expected a list of objects")
    made = []
    for place, item in enumerate(given):
        if not isinstance(item, Mapping):
            raise OptionError(f"{name}[{place}] is {_kind(item)}, expected an object")
        made.append(_json(item, f"{name}[{place}]", _MOST_DEPTH))
    return made


def _json(value: Any, place: str, depth: int) -> Any:
    """Return a copy of a JSON value."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if depth == 0:
        raise OptionError(f"{place}: nested more than {_MOST_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise OptionError(f"{place}: the key {key!r:.40} is {_kind(key)}, expected a text")
        return {key: _json(item, f"{place}.{key:.40}", depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item, f"{place}[{i}]", depth - 1) for i, item in enumerate(value)]
    raise OptionError(
        f"{place} is {_kind(value)}, expected a text, number, list, object, True, False or None"
    )


def _kind(value: object) -> str:
    """Name a value's type as messages do: "a float", "an int"."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
