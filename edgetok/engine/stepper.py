"""The loop: who has the turn makes steps, for all sequences that want one.

A reader who pulls alone makes the steps itself, so that nothing is handed between threads. As soon
as there are several, or one that cannot block, a thread of the engine's own makes them
(`thread.py`).

Closing and cancelling must be possible at any moment: from other threads, from a signal handler or
a finaliser that interrupts the very code that has the turn. So they take no lock: they leave a note
(`_notes`), and whoever can have the turn reads it; who gives the turn back looks again.
"""

from __future__ import annotations

import copy
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

from edgetok.engine.compute import Found, compute
from edgetok.engine.followers import leader_of, leads
from edgetok.engine.mailbox import End, Mailbox, Piece
from edgetok.engine.pace import Pace
from edgetok.engine.scheduler import Planned, Scheduler
from edgetok.engine.sequence import Sequence
from edgetok.engine.thread import EngineThread
from edgetok.errors import EdgetokError
from edgetok.runtime.backend import Backend

_GAPS = 1024
_CLOSED = "the model was closed; load it again"


class Stepper:
    """Makes steps for sequences, whose letters go to their mailboxes.

    Attributes:
        gaps_s: seconds outside the backend between two steps that the engine's own thread made
            right after each other: the latest ones.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler[Sequence],
        clock: Callable[[], float] = time.perf_counter,
        pace: Pace | None = None,
    ) -> None:
        """Prepare; no thread starts yet.

        Args:
            backend: computes the steps.
            scheduler: chooses the steps.
            clock: seconds.
            pace: a speed to hold; None for the highest.
        """
        self._backend, self._scheduler, self._clock = backend, scheduler, clock
        self._pace = pace
        self._live: dict[Sequence, Mailbox] = {}  # touched with the turn alone
        self._following: dict[Sequence, Sequence] = {}  # prompts that wait for another; likewise
        self._notes: deque[tuple[Sequence, Mailbox]] = deque()  # to be taken in or let go
        self.gaps_s: deque[float] = deque(maxlen=_GAPS)
        self._left: float | None = None  # when the backend was done last, if the loop went on
        self._closed = False
        self._thread = EngineThread(self)
        self._free_turn()
        _STEPPERS.add(self)

    def _free_turn(self) -> None:
        # Its C code notes the owner as it takes it, so that an interrupt cannot come between.
        self._turn: Any = threading.RLock()

    # Asked by readers

    def now(self) -> float:
        """Seconds of the engine's clock."""
        return self._clock()

    def submit(self, sequence: Sequence, mailbox: Mailbox) -> None:
        """Take in a sequence; its cache belongs to the engine until it is let go.

        Raises:
            BusyError: too many wait already.
            EdgetokError: the engine was closed.
        """
        if self._closed:
            raise EdgetokError(_CLOSED)
        self._scheduler.add(sequence)
        self._notes.append((sequence, mailbox))

    def pull(self, sequence: Sequence) -> float | None:
        """Make a step for a reader who waits, if it is the only one that wants any.

        Returns:
            Seconds to rest before asking again, unless a letter comes: 0 after a step. None where
            the engine's own thread makes the steps: then wait for a letter.

        Raises:
            BaseException: an interrupt in the middle of the step; the sequence is let go.
        """
        if self._take(blocking=self._closed):
            try:
                self._tidy()
                if self._wanted() in ([], [sequence]):
                    return self._paced([sequence]) or 0.0 if sequence in self._live else 0.0
            finally:
                self._left = None
                self._give()
        self.call()
        return None

    def recover(self) -> None:
        """Give back a turn that an interrupt kept this thread from giving back itself."""
        while self._turn._is_owned():
            self._turn.release()

    def call(self) -> None:
        """Have the engine's own thread make steps while any are wanted.

        Raises:
            EdgetokError: no thread can be started.
        """
        self._thread.call()

    def let_go(self, sequence: Sequence, mailbox: Mailbox) -> None:
        """End a sequence that was cancelled or closed; never blocks.

        Its last letter is `End`: now, or when the step in progress is done.
        """
        self._notes.append((sequence, mailbox))
        if self._take(blocking=False):
            self._give()

    def wait(self, mailbox: Mailbox) -> None:
        """Wait until a sequence that was let go is in no step any more.

        Inside the step itself, as in a signal handler, it does not wait.
        """
        if not self._turn._is_owned():
            mailbox.released.wait()

    def close(self) -> None:
        """End all sequences and the thread; a second call does nothing."""
        self._closed = True
        if self._take(blocking=True):
            self._give()
        self._thread.stop()

    def after_fork(self) -> None:
        """Begin anew in a forked child: the thread is gone, and so may be who had the turn."""
        self._thread.after_fork()
        self._free_turn()

    # With the turn

    def _take(self, blocking: bool) -> bool:
        """Take the turn; False where another thread has it, or this one already."""
        return not self._turn._is_owned() and bool(self._turn.acquire(blocking))

    def _give(self) -> None:
        """Give the turn back, and read notes that came too late for whoever had it."""
        while True:
            if self._notes or self._closed:
                self._tidy()
            self._turn.release()
            if not self._notes or not self._take(blocking=False):
                return

    def _tidy(self) -> None:
        """Read the notes: begin sequences that are new, end those that were let go."""
        if self._closed:
            for sequence in list(self._live):
                self._end(sequence, EdgetokError(_CLOSED))
        while self._notes:
            # Removed when it was done: an interrupt in between must not lose another's note.
            sequence, mailbox = self._notes[0]
            if sequence in self._live:
                if mailbox.over:
                    self._end(sequence)
            elif sequence.finish is None and mailbox.over:
                self._scheduler.remove(sequence)
                sequence.cancel()
                mailbox.released.set()
                mailbox.put(End())
            elif sequence.finish is None:
                self._take_in(sequence, mailbox)
            self._notes.popleft()

    def _take_in(self, sequence: Sequence, mailbox: Mailbox) -> None:
        error: Exception | None = EdgetokError(_CLOSED) if self._closed else None
        try:
            if error is None:
                sequence.begin()
        except Exception as found:
            error = found
        self._live[sequence] = mailbox
        if error is not None:
            self._end(sequence, error)
        else:
            self._follow(sequence)

    def _follow(self, sequence: Sequence) -> None:
        """Let a prompt wait for another that begins alike, if there is one; see `followers`."""
        leading = [one for one in self._live.items() if one[0] not in self._following]
        leader = leader_of(sequence, leading)
        if leader is not None:
            self._following[sequence] = leader

    def _end(self, sequence: Sequence, error: BaseException | None = None) -> None:
        """Let go of a sequence and of its cache, whose contents are known."""
        mailbox = self._live.pop(sequence)
        self._following.pop(sequence, None)
        self._scheduler.remove(sequence)
        for text in sequence.cancel():
            mailbox.put(Piece(text, len(sequence.tokens)))
        mailbox.failed = error is not None
        mailbox.released.set()
        mailbox.put(End(error))

    def _lose(self, sequences: Many[Sequence], error: BaseException) -> None:
        """End sequences after a step that failed: what their caches hold is unknown."""
        lost = [sequence for sequence in sequences if sequence in self._live]
        for i, sequence in enumerate(lost):
            sequence.context.lost()
            self._end(sequence, _copied(error) if i else error)

    def _wanted(self) -> list[Sequence]:
        """The sequences whose next token is waited for or may be computed ahead."""
        for sequence, leader in list(self._following.items()):
            if leader not in self._live or not leads(leader, self._live[leader]):
                del self._following[sequence]
                try:
                    sequence.look_again()
                except Exception as error:
                    self._end(sequence, error)
                else:
                    self._follow(sequence)
        return [
            sequence
            for sequence, mailbox in self._live.items()
            if sequence not in self._following
            and (
                mailbox.waiting or len(sequence.tokens) - mailbox.read_tokens < mailbox.ahead_tokens
            )
        ]

    def _paced(self, wanted: Many[Sequence]) -> float | None:
        """Make the next step, if it is due: see `work`. Prompts are read while others rest.

        An answer whose time is over is due at once: it ends with that step.
        """
        rest_s = 0.0
        if self._pace is not None and wanted:
            now = self._clock()
            ends_s = min(sequence.deadline_s for sequence in wanted)
            rest_s = max(0.0, min(self._pace.rest_s(now), ends_s - now))
        if self._step(wanted, rest=rest_s > 0):
            return 0.0
        self._left = None
        return rest_s or None

    def _step(self, wanted: Many[Sequence], *, rest: bool) -> bool:
        """Make the next step and leave its letters; False if there is none to make."""
        began = self._clock()
        step = self._scheduler.next(wanted, rest=rest)
        if step is None:
            return False
        sequences = [sequence for sequence, _ in step.shares]
        before = sum(len(sequence.tokens) for sequence in sequences)
        try:
            for sequence, rows in step.shares:
                sequence.prepare(rows)
            began = self._clock()  # what drafts cost is counted apart
            for (sequence, rows), found in zip(step.shares, self._computed(step), strict=True):
                self._deliver(sequence, rows, found, began)
        except BaseException as error:
            self._lose(sequences, error)
            if not isinstance(error, Exception):
                raise
            return True
        self._scheduler.done(step, self._clock() - began)
        if self._pace is not None:
            made = sum(len(sequence.tokens) for sequence in sequences) - before
            self._pace.made(made, began)
        return True

    def _deliver(self, sequence: Sequence, rows: int, found: Found, began: float) -> None:
        """Hand a sequence its part of a step's result, and its reader what that makes."""
        mailbox = self._live[sequence]
        if isinstance(found, Exception):
            self._end(sequence, found)
            return
        if mailbox.over:
            sequence.computed(rows)
            self._end(sequence)
            return
        try:
            pieces = sequence.advance(rows, found, began, self._clock)
        except Exception as error:
            self._end(sequence, error)
            return
        for piece in pieces:
            mailbox.waiting = False
            mailbox.put(piece)
        if sequence.finish is not None:
            self._end(sequence)

    def _computed(self, step: Planned[Sequence]) -> list[Found]:
        """Run a step on the backend; return one result for each share."""
        begun = self._clock()
        if self._left is not None:
            self.gaps_s.append(begun - self._left)
        results = compute(self._backend, step.shares)
        self._left = self._clock()
        return results

    # The engine's own thread

    def work(self) -> float | None:
        """Make a step if any is wanted that no reader makes itself. See `Worker`."""
        self._take(blocking=True)
        try:
            self._tidy()
            wanted = self._wanted()
            boxes = [self._live[sequence] for sequence in wanted]
            if len(wanted) < 2 and not any(box.waiting or box.eager for box in boxes):
                self._left = None
                return None
            return self._paced(wanted)
        finally:
            self._give()


def _copied(error: BaseException) -> BaseException:
    """An error for one more reader: each raises its own, so that tracebacks do not mix."""
    try:
        made = copy.copy(error)
    except Exception:
        return error
    made.__cause__ = error
    return made


_STEPPERS: weakref.WeakSet[Stepper] = weakref.WeakSet()


def _after_fork() -> None:
    for stepper in list(_STEPPERS):
        stepper.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
