"""A model that answers by a rule, and what it should answer."""

from __future__ import annotations

import threading
from typing import Any

from edgetok.model import Model


def chained(tokens: list[int]) -> int:
    """The next token depends on all before, so that a mixed-up cache shows; each is a letter."""
    return (sum((i + 1) * token for i, token in enumerate(tokens)) * 31 + 7) % 64 + 20


def alone(prompt: list[int], count: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(chained(tokens))
    return tuple(tokens[len(prompt) :])


PROMPTS = [[40 + i, 50, 60 + i] * (1 + 7 * i) for i in range(8)]


def steps(model: Model) -> list[list[int]]:
    backend: Any = model.backend
    return backend.computed


def engine_threads() -> int:
    return sum(thread.name == "edgetok-engine" for thread in threading.enumerate())
