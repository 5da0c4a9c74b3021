"""Entry point: `edgetok`, `python -m edgetok` and `python -m edgetok.cli`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. Ctrl-C while it is imported ends the process without a traceback."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, _leave)
    from edgetok.cli.main import run

    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(130)  # as for Ctrl-C later; nothing is open yet


if __name__ == "__main__":
    main()
