"""Handle signals: Ctrl-C ends an answer and not the program; others let it save what it has."""

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


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """Make SIGTERM and the end of the terminal raise SystemExit inside the block, once.

    Signals that are ignored, as behind `nohup`, stay ignored.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            if signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL)
