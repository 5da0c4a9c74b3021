"""Keep keys that are typed during an answer off the screen.

They wait in the terminal and come with the next line that is read, pasted blocks included.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

try:  # absent on Windows, where keys are not shown before they are read
    import termios
except ImportError:  # pragma: no cover
    termios = None  # type: ignore[assignment]

_PASTES_ON, _PASTES_OFF = "\x1b[?2004h", "\x1b[?2004l"


@contextlib.contextmanager
def quiet_keys() -> Iterator[None]:
    """Show no typed keys inside the block, if both input and output are a terminal.

    Ctrl-C still interrupts. Lines are not collected by the terminal, so that what was typed of one
    can still be edited. The terminal is told to mark pasted blocks.
    """
    if termios is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(terminal)
    except termios.error:
        yield
        return
    changed = list(before)
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    sys.stdout.write(_PASTES_ON)
    try:
        yield
    finally:
        sys.stdout.write(_PASTES_OFF)
        sys.stdout.flush()
        termios.tcsetattr(terminal, termios.TCSANOW, before)
