"""Filters, tests, methods and functions of chat templates, each measured before it runs.

They are jinja2's own and Python's own, called as they are: what is added is a check of the
arguments, so that one call costs a bounded time and memory. Python looks at the clock only between
calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import filters, pass_context, pass_environment, tests
from jinja2.environment import Environment
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup

from edgetok.errors import TemplateError
from edgetok.text.template_budget import (
    ESCAPED,
    ITEM_BYTES,
    check_format,
    check_integer,
    current,
    fits,
    made,
    size_of,
    text_of,
    weigh,
)

MAX_COMPARISONS = 1 << 27
"""Characters that one call may compare, where it compares each with each: 0.1 s."""
MAX_RARE_BYTES = 64 << 10
"""The most bytes for filters that no chat template needs: some are quadratic."""
MAX_URLIZED_BYTES = 4 << 10

_STR_METHODS = frozenset(
    re.findall(
        r"\w+",
        """capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii
        isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join
        ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust
        rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill""",
    )
)
_LOOP = frozenset(
    re.findall(
        r"\w+",
        """changed cycle depth depth0 first index index0 last length nextitem previtem revindex
        revindex0""",
    )
)
# The first type that fits decides.
ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _STR_METHODS),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    (list, frozenset(("copy", "count", "index"))),
    (filters._GroupTuple, frozenset(("count", "grouper", "index", "list"))),
    (tuple, frozenset(("count", "index"))),
    (float, frozenset(("is_integer",))),
    (LoopContext, _LOOP),
    (Macro, frozenset(("arguments", "caller", "catch_kwargs", "catch_varargs", "name"))),
    (Cycler, frozenset(("current", "next", "reset"))),
)


# Methods of text. A check takes what the method takes.
def _padded(text: str, width: int, fill: str = " ") -> None:
    fits(4 * max(width, len(text)))


def _expanded(text: str, tabsize: int = 8) -> None:
    fits(size_of(text) + text.count("\t") * max(tabsize, 0))


def _searched(text: str, other: Any = None, *more: Any, **named: Any) -> None:
    """Refuse long texts for methods that compare each with each from the right, as strip does."""
    other = named.get("sep", other)
    if isinstance(other, str) and len(text) * len(other) > MAX_COMPARISONS:
        raise TemplateError(
            f"chat template: looks for {len(other):,} characters in {len(text):,} from their end"
        )


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    if isinstance(sep, str) and sep:
        times = text.count(sep)
        fits(ITEM_BYTES * (times if maxsplit < 0 else min(times, maxsplit)))


def _replaced(text: str, old: str, new: str, count: int | None = None) -> None:
    factor = ESCAPED if isinstance(text, Markup) else 1
    times = text.count(old)
    if count is not None and count >= 0:
        times = min(count, times)
    fits(size_of(text) + times * max(factor * len(new) - len(old), 0))


def _joined(separator: str, values: Any) -> None:
    _iterated(values)
    factor = ESCAPED if isinstance(separator, Markup) else 1
    fits(factor * weigh(values) + len(separator) * len(values))


_METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "expandtabs": _expanded,
    "join": _joined,
    "lstrip": _searched,
    "replace": _replaced,
    "rfind": _searched,
    "rindex": _searched,
    "rpartition": _searched,
    "rsplit": _searched,
    "rstrip": _searched,
    "split": _split,
    "strip": _searched,
}


def check_method(owner: object, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse a call of a text's method that would cost too much.

    Raises:
        TemplateError: it would.
        TypeError: the method does not take these arguments.
    """
    check = _METHOD_CHECKS.get(name)
    if check is not None and isinstance(owner, str):
        check(owner, *args, **named)


class Formatter(SandboxedFormatter):
    """`str.format` whose fields have a bounded width; for one text."""

    _bytes = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Measure what is about to be written."""
        weigh(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        """Write one field, not wider than 999 characters if padded.

        Raises:
            TemplateError: it is to be wider.
        """
        current.get().step()
        if re.search(r"\d{4}", format_spec):
            raise TemplateError(f"chat template: a field of width {format_spec:.40} in a format")
        check_integer(value)
        text: str = super().format_field(text_of(value) if not format_spec else value, format_spec)
        self._bytes += len(text)
        fits(self._bytes)
        return text


# Filters. A check takes what the filter takes.
def _iterated(value: Any, *args: Any, **named: Any) -> None:
    if isinstance(value, str):
        fits(ITEM_BYTES * len(value))


def _rare(value: Any, *args: Any, **named: Any) -> None:
    size = weigh(value)
    if size > MAX_RARE_BYTES:
        raise TemplateError(
            f"chat template: {size:,} bytes in a filter that takes at most {MAX_RARE_BYTES:,}"
        )
    fits(size * (weigh(args) + weigh(named)))


def _urlized(value: Any, *args: Any, **named: Any) -> None:
    if size_of(value) > MAX_URLIZED_BYTES:
        raise TemplateError(f"chat template: urlize of more than {MAX_URLIZED_BYTES:,} bytes")
    _rare(value, *args, **named)


def _counted(value: Any, count: int, fill_with: Any = None) -> None:
    _iterated(value)
    fits(ITEM_BYTES * count)


def _indented(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> None:
    size = width if isinstance(width, int) else len(width)
    fits(ESCAPED * (size_of(text) + size * (text.count("\n") + 1)))


def _rounded(value: Any, precision: int = 0, method: str = "common") -> None:
    if not 0 <= precision <= 15:
        raise TemplateError(f"chat template: round to {precision} places, expected 0..15")


def _joined_filter(value: Any, d: Any = "", attribute: Any = None) -> None:
    _iterated(value)
    fits(weigh(value) + len(text_of(d)) * len(value))


def _scaled(factor: int) -> Callable[..., None]:
    """A check for what makes so many bytes of each of its value's."""
    return lambda value, *args, **named: fits(factor * weigh(value))


def _formatted(value: Any, *args: Any, **named: Any) -> None:
    check_format(text_of(value), named or args)


_FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _counted,
    "center": lambda value, width=80: _padded(text_of(value), width),
    "e": _scaled(ESCAPED),
    "escape": _scaled(ESCAPED),
    "forceescape": _scaled(ESCAPED),
    "format": _formatted,
    "indent": _indented,
    "join": _joined_filter,
    "pprint": _rare,
    "replace": lambda s, old, new, count=None: _replaced(
        str(text_of(s)), text_of(old), text_of(new), count
    ),
    "round": _rounded,
    "safe": _scaled(1),
    "slice": _counted,
    "string": _scaled(1),
    "striptags": _rare,
    "title": lambda value: fits(ITEM_BYTES * len(text_of(value))),
    "trim": lambda value, chars=None: _searched(text_of(value), chars),
    "urlencode": _scaled(12),
    "urlize": _urlized,
    "wordcount": lambda value: fits(ITEM_BYTES // 2 * len(text_of(value))),
    "wordwrap": _rare,
    "xmlattr": _rare,
}
_FILTER_CHECKS |= {
    name: _iterated
    for name in re.findall(
        r"\w+",
        "dictsort groupby list map max min reject rejectattr select selectattr sort unique",
    )
}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes, an indent if wanted."""
    if (isinstance(indent, int) and indent > 16) or (isinstance(indent, str) and len(indent) > 16):
        raise TemplateError(f"chat template: tojson with an indent of {indent!s:.40}, expected 16")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces, size = [], 0
    budget = current.get()
    for piece in encoder.iterencode(value):
        budget.step()
        size += len(piece)
        fits(size)
        pieces.append(piece)
    return "".join(pieces)


@pass_environment
def _sum(environment: Environment, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    """The sum, added up behind the gate: of lists it is quadratic."""
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings [use ''.join(seq) instead]")
    pick = filters.make_attrgetter(environment, attribute) if attribute is not None else None
    total = start
    for item in iterable:
        value = item if pick is None else pick(item)
        total = environment.call_binop(None, "+", total, value)  # type: ignore[attr-defined]
    return total


def _random(*args: object, **named: object) -> Any:
    raise TemplateError("chat template: draws random text, so each rendering is different")


def gated_filters() -> dict[str, Callable[..., Any]]:
    """The filters that transformers' templates know, each behind the gate."""
    known = dict(filters.FILTERS) | {"random": _random, "sum": _sum, "tojson": _tojson}
    return {name: _gated(name, function) for name, function in known.items()}


def _gated(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    wants = getattr(function, "jinja_pass_arg", None)
    wants = wants and wants.name
    check = _FILTER_CHECKS.get(name)

    # With the context as argument jinja2 never runs a filter while it compiles.
    @pass_context
    def filter_(context: Context, value: Any = "", *args: Any, **named: Any) -> Any:
        current.get().step()
        check_integer(value)
        if check is not None:
            check(value, *args, **named)
        if wants == "context":
            result = function(context, value, *args, **named)
        elif wants == "eval_context":
            result = function(context.eval_ctx, value, *args, **named)
        elif wants == "environment":
            result = function(context.environment, value, *args, **named)
        else:
            result = function(value, *args, **named)
        return made(result)

    return filter_


def gated_tests() -> dict[str, Callable[..., Any]]:
    """jinja2's tests, each behind the gate."""

    def gated(test: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(test)
        def test_(*args: Any) -> Any:
            current.get().step()
            for value in args:
                check_integer(value)
            return test(*args)

        return test_

    known: dict[str, Any] = dict(tests.TESTS)
    return {name: gated(test) for name, test in known.items()}


def _strftime_now(form: str) -> str:
    if len(form) > 256 or not re.fullmatch(r"(?:[^%]|%-?[A-Za-z%])*", form):
        raise TemplateError(f"chat template: strftime_now({form[:40]!r}) is not a known format")
    return datetime.now().strftime(form)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"chat template: {message}"[:500])


def _range(*args: Any) -> list[int]:
    numbers = range(*args)
    fits(ITEM_BYTES * len(numbers))
    return list(numbers)


GLOBALS: Mapping[str, Any] = {
    "cycler": Cycler,
    "dict": dict,
    "joiner": Joiner,
    "lipsum": _random,
    "namespace": Namespace,
    "raise_exception": _raise_exception,
    "range": _range,
    "strftime_now": _strftime_now,
}
