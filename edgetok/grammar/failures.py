"""Failures of llguidance, as one exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgetok.errors import GrammarError


@contextmanager
def guarded(doing: str) -> Iterator[None]:
    """Turn every failure of llguidance, a Rust panic among them, into `GrammarError`.

    Raises:
        GrammarError: anything but an interrupt was raised inside.
    """
    try:
        yield
    except (GrammarError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # pyo3's PanicException is not an Exception
        raise GrammarError(f"{doing}: {readable(str(error))}") from error


def readable(problem: str) -> str:
    """Return what llguidance says in one line."""
    return " ".join(problem.split("<state>")[0].split())[:300]
