"""Limits of one rendering of a chat template, and the check that every value passes.

A value is measured when it is made: text by its bytes, a container with all that it refers to, so
that forty nested lists that each hold the last one twice count at their full size.
"""

from __future__ import annotations

import contextvars
import re
import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.utils import Namespace
from markupsafe import Markup

from edgetok.errors import TemplateError

MAX_SECONDS = 1.0
MAX_VALUE_BYTES = 4 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_STEPS = 1_000_000
MAX_INT_BITS = 4096

ITEM_BYTES = 64
ESCAPED = 5
"""Characters at most that HTML makes of one."""

_CONVERSION = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(\d*)(?:\.(\d*))?(.?)", re.DOTALL)
_VIEWS = (ItemsView, KeysView, ValuesView)


class Budget:
    """The remaining budget of one rendering."""

    def __init__(self) -> None:
        # The thread's own time: a busy or sleeping machine is not the template's fault.
        self._deadline = time.thread_time() + MAX_SECONDS
        self._bytes = MAX_TOTAL_BYTES
        self._steps = MAX_STEPS

    def step(self) -> None:
        """Count one more step.

        Raises:
            TemplateError: there were too many, or the time is over.
        """
        self._steps -= 1
        if self._steps < 0 or time.thread_time() > self._deadline:
            raise TemplateError(f"chat template: still rendering after {MAX_SECONDS:g} s")

    def spend(self, size: int) -> None:
        """Count bytes that were made.

        Raises:
            TemplateError: there were too many.
        """
        self._bytes -= size
        if self._bytes < 0:
            raise TemplateError(
                f"chat template: produced more than {MAX_TOTAL_BYTES >> 20} MB of text"
            )


current: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")


def made(value: Any) -> Any:
    """Check a new value against the budget and return it; every new value passes here.

    Returns:
        The value, iterators as lists.
    """
    budget = current.get()
    budget.step()
    if isinstance(value, (str, int, float)) or value is None:
        check_integer(value)
        size = sys.getsizeof(value)
        if size > MAX_VALUE_BYTES:
            raise too_large()
        budget.spend(size)
        return value
    if isinstance(value, Iterator):
        value = listed(value)
    if isinstance(value, (list, tuple, dict, *_VIEWS)):
        weigh(value)
    budget.spend(sys.getsizeof(value))
    return value


def listed(values: Iterable[Any]) -> list[Any]:
    """Run an iterator to its end; each item is a step."""
    result = []
    budget = current.get()
    for value in values:
        budget.step()
        result.append(value)
    return result


def weigh(value: Any) -> int:
    """Bytes of a value written out, each container with all that it holds.

    Raises:
        TemplateError: more than `MAX_VALUE_BYTES`, or a namespace inside a container.
    """
    total = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, (list, tuple, *_VIEWS)):
            total += ITEM_BYTES * (len(item) + 1)
            if total <= MAX_VALUE_BYTES:
                stack.extend(item)
        elif isinstance(item, Mapping):
            total += 2 * ITEM_BYTES * (len(item) + 1)
            if total <= MAX_VALUE_BYTES:
                stack.extend(item)
                stack.extend(item.values())
        elif isinstance(item, (str, int)):
            total += sys.getsizeof(item)
        elif isinstance(item, Namespace):
            raise TemplateError("chat template: a namespace cannot be written or held in a list")
        else:
            total += ITEM_BYTES
        if total > MAX_VALUE_BYTES:
            raise too_large()
    return total


def too_large() -> TemplateError:
    """Return the error for a value beyond the bound."""
    return TemplateError(f"chat template: made a value of more than {MAX_VALUE_BYTES >> 20} MB")


def fits(size: int) -> None:
    """Refuse a size in bytes beyond the bound of one value.

    Raises:
        TemplateError: it is beyond.
    """
    if size > MAX_VALUE_BYTES:
        raise too_large()


class Each:
    """The items of a loop; each one counts as a step."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __iter__(self) -> Iterator[Any]:
        budget = current.get()
        for value in self._values:
            budget.step()
            yield value

    def __len__(self) -> int:
        return len(self._values)


def size_of(value: Any) -> int:
    """Bytes of a text, or of anything written out."""
    return sys.getsizeof(value) if isinstance(value, str) else weigh(value)


def check_integer(value: Any) -> None:
    """Refuse an integer beyond the bound: to divide two of them takes the square of their size.

    Raises:
        TemplateError: it is beyond.
    """
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise too_large()


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse arithmetic whose result would be too large, before it is made.

    Raises:
        TemplateError: it would be.
    """
    check_integer(left)
    check_integer(right)
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "+":
        if isinstance(left, str) and isinstance(right, str):
            escapes = isinstance(left, Markup) or isinstance(right, Markup)
            fits((sys.getsizeof(left) + sys.getsizeof(right)) * (ESCAPED if escapes else 1))
    elif operator == "*":
        if numbers:
            if left.bit_length() + right.bit_length() > MAX_INT_BITS:
                raise too_large()
        elif isinstance(left, int) or isinstance(right, int):
            count, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(value, (str, list, tuple)):
                fits(weigh(value) * max(count, 1))
    elif operator == "**":
        if numbers and (abs(right) > MAX_INT_BITS or left.bit_length() * right > MAX_INT_BITS):
            raise too_large()
    elif operator == "%" and isinstance(left, str):
        check_format(left, right)


def check_format(form: str, values: Any) -> None:
    """Refuse a format whose result would be too large.

    Raises:
        TemplateError: it would be, or asks for more than a plain field.
    """
    size, fields = 0, 0
    for width, precision, kind in _CONVERSION.findall(form):
        if len(width) > 3 or len(precision) > 3 or kind not in tuple("diouxXeEfFgGcrsa%"):
            raise TemplateError("chat template: a format may contain only plain fields such as %s")
        size += int(width or 0) + int(precision or 0)
        fields += 1
    times = fields if isinstance(values, Mapping) else 1
    escaped = ESCAPED if isinstance(form, Markup) else 1
    fits(sys.getsizeof(form) + size + escaped * times * weigh(values))


def text_of(value: Any) -> str:
    """`str`, measured before it is done; a text is left as it is."""
    if isinstance(value, str):
        return value
    weigh(value)
    return str(value)
