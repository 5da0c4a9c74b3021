"""The mailbox between the engine, which writes a sequence's text, and its reader."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

AHEAD_TOKENS = 4  # that are computed for a reader who is not there, while steps are made anyway
NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, and how many tokens of the answer it ends with."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class End:
    """The answer is over: with an error, or as the sequence's `finish` says."""

    error: BaseException | None = None


Letter = Piece | End


class Mailbox:
    """One sequence's letters to one reader.

    Written by whoever has the engine's turn; read by one reader at a time. All that is set from
    elsewhere are single attributes and `SimpleQueue.put`, which may be called at any moment: from
    signal handlers and finalisers, too.

    Attributes:
        waiting: whether the reader waits for a letter now.
        ahead_tokens: how many tokens may be computed that the reader has not taken, while steps
            are made anyway.
        eager: whether steps are made for that alone.
        read_tokens: how many tokens the reader has taken.
        cancelled: whether the answer shall end with what there is.
        closed: whether the reader is gone.
        notify: called after each letter, for readers that cannot block.
        failed: whether the answer ended with an error.
        released: set once no step touches the sequence's cache any more.
    """

    __slots__ = (
        "_letters",
        "ahead_tokens",
        "cancelled",
        "closed",
        "eager",
        "failed",
        "get",
        "notify",
        "read_tokens",
        "released",
        "waiting",
    )

    def __init__(self) -> None:
        """Begin empty, for a reader that pulls."""
        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        # Blocks until there is a letter.
        self.get: Callable[[], Letter] = self._letters.get
        self.waiting = False
        self.ahead_tokens = AHEAD_TOKENS
        self.eager = False
        self.read_tokens = 0
        self.cancelled = False
        self.closed = False
        self.failed = False
        self.notify: Callable[[], None] | None = None
        self.released = threading.Event()

    @property
    def over(self) -> bool:
        """Return whether the sequence was cancelled or closed."""
        return self.cancelled or self.closed

    def put(self, letter: Letter) -> None:
        """Leave a letter."""
        self._letters.put(letter)
        notify = self.notify
        if notify is not None:
            notify()

    def wait(self, seconds: float) -> Letter | None:
        """Take the next letter; None where none has come after so long."""
        try:
            return self._letters.get(timeout=seconds)
        except queue.Empty:
            return None

    def poll(self) -> Letter | None:
        """Take the next letter; None where there is none."""
        return None if self._letters.empty() else self._letters.get()
