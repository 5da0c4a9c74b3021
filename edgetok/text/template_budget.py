"""Limits of one rendering of a chat template, and the check that every value passes.

A value is measured when it is made: text by its bytes, a container with all that it refers to, so
that forty nested lists that each hold the last one twice count at their full size.
"""

from __future__ import annotations

import contextvars
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2.utils import Namespace

from edgetok.errors import TemplateError

MAX_SECONDS = 1.0
MAX_VALUE_BYTES = 4 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_STEPS = 1_000_000
MAX_INT_BITS = 4096

ITEM_BYTES = 64


class Budget:
    """The remaining budget of one rendering."""

    def __init__(self) -> None:
        # The thread's own time: a busy or sleeping machine is not the template's fault.
        self._deadline = time.thread_time() + MAX_SECONDS
        self._bytes = MAX_TOTAL_BYTES
        self._steps = MAX_STEPS

    def step(self) -> None:
        """One more step: ask the clock."""
        self._steps -= 1
        if self._steps < 0 or time.thread_time() > self._deadline:
            raise TemplateError(f"chat template: still rendering after {MAX_SECONDS:g} s")

    def spend(self, size: int) -> None:
        """Add to the bytes made."""
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
        size = sys.getsizeof(value)
        if size > MAX_VALUE_BYTES:
            raise too_large()
        budget.spend(size)
        return value
    if isinstance(value, (Iterator, type({}.items()), type({}.keys()), type({}.values()))):
        value = listed(value)
    if isinstance(value, (list, tuple, dict)):
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
        if isinstance(item, (list, tuple)):
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
    """Refuse a size in bytes beyond the bound of one value."""
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


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse arithmetic whose result would be too large, before it is made."""
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "+":
        if isinstance(left, str) and isinstance(right, str):
            fits(sys.getsizeof(left) + sys.getsizeof(right))
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
        fields = re.findall(r"%(.?)", left, re.DOTALL)
        if any(field not in ("s", "d", "%") for field in fields):
            raise TemplateError("chat template: a format may contain only %s, %d and %%")
        fits(sys.getsizeof(left) + len(fields) * weigh(right))


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """`str.replace`, measured before it is done."""
    times = text.count(old) if count < 0 else min(count, text.count(old))
    fits(len(text) + times * max(len(new) - len(old), 0))
    return text.replace(old, new, count)


def join(separator: str, values: Iterable[Any]) -> str:
    """`str.join` of anything, measured before it is done."""
    texts = [text_of(value) for value in values]
    fits(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def text_of(value: Any) -> str:
    """`str`, measured before it is done."""
    if not isinstance(value, str):
        weigh(value)
    return str(value)
