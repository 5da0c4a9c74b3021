"""Handle Ctrl-C: end an answer and not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgetok.engine.generation import Generation


@contextmanager
def cancel_on_interrupt(generation: Generation) -> Iterator[None]:
    """Make Ctrl-C cancel the generation inside the block; a second one interrupts as usual.

    A step in progress is finished first, so that the cache and the conversation stay usable.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        del number, frame
        generation.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
