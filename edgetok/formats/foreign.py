"""One wrapper around what other libraries raise when they read a stranger's file.

Parsers written in C++ and Rust raise whatever they like, some of it no `Exception`: a Rust panic is
a `BaseException`, and writes a stack trace to stderr on its way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from edgetok.errors import EdgetokError, UserError

_NOT_OURS = (EdgetokError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextlib.contextmanager
def foreign(what: str, error: type[UserError], remedy: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into one line.

    Args:
        what: file, field and what was tried, such as "tokenizer.json: cannot be read".
        error: class of what is raised instead.
        remedy: what to do about it.

    Raises:
        UserError: of class `error`, where anything was raised but an error of our own, Ctrl-C or
            an exit.
    """
    try:
        yield
    except _NOT_OURS:
        raise
    except BaseException as failure:
        reason = " ".join((str(failure).strip() or repr(failure)).split())[:300]
        raise error(f"{what}: {reason}" + (f"; {remedy}" if remedy else "")) from failure


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what native code writes to the process's stderr; for short calls alone.

    A Rust panic prints its trace before it becomes an exception, and nothing else stops it.
    """
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
