"""The engine's own thread: it starts when it is first called and rests where nothing is to be done.

It ends with `stop`, at the interpreter's exit, or when nobody refers to the engine any more.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from typing import Protocol

from edgetok.errors import EdgetokError

_JOIN_S = 10.0


class Worker(Protocol):
    """The owner of the work that a thread does."""

    def work(self) -> float | None:
        """Make a step.

        Returns:
            Seconds to rest before the next one, unless somebody calls: 0 after a step. None where
            there is nothing to do before somebody calls.
        """


class EngineThread:
    """A thread that lets its owner work whenever it is called."""

    def __init__(self, owner: Worker) -> None:
        """Prepare; the owner, who may be collected meanwhile, has no thread yet."""
        self._owner = weakref.ref(owner)
        self._stopped = False
        self._begin()

    def _begin(self) -> None:
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True ends the thread
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def call(self) -> None:
        """Let the owner work until there is nothing to do.

        Raises:
            EdgetokError: no thread can be started.
        """
        if self._thread is None:
            with self._starting:
                if self._thread is None and not self._stopped:
                    self._start()
        self._calls.put(False)

    def stop(self) -> None:
        """End the thread; a second call does nothing, and none starts any more."""
        with self._starting:
            self._stopped = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._finalizer.detach()
            _stop(self._calls, thread, os.getpid())

    def after_fork(self) -> None:
        """Begin anew in a forked child, where the thread is gone."""
        if self._thread is not None:
            self._finalizer.detach()
        self._begin()

    def _start(self) -> None:
        thread = threading.Thread(
            target=_run, args=(self._owner, self._calls), name="edgetok-engine", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise EdgetokError(f"cannot start the engine's thread ({error})") from error
        self._thread = thread
        self._finalizer = weakref.finalize(self, _stop, self._calls, thread, os.getpid())


def _run(owner: weakref.ref[Worker], calls: queue.SimpleQueue[bool]) -> None:
    """Run the thread's loop, with a weak reference to the owner so that it can be collected."""
    rest_s: float | None = None
    while True:
        stop = False
        with contextlib.suppress(queue.Empty):
            stop = calls.get(timeout=rest_s)
            while not stop:
                stop = calls.get_nowait()
        worker = owner()
        if stop or worker is None:
            return
        while (rest_s := worker.work()) == 0:
            pass
        del worker


def _stop(calls: queue.SimpleQueue[bool], thread: threading.Thread, pid: int) -> None:
    """End the thread; in a forked child there is none."""
    if pid == os.getpid():
        calls.put(True)
        if thread is not threading.current_thread():
            thread.join(_JOIN_S)
