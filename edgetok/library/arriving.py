"""Progress of a download, seen by the sizes of the files that huggingface_hub writes.

Its own bars are a line for each file, which a terminal of 80 columns cuts, and none for the whole.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetok.converter.progress import Progress

_POLL_S = 0.5
_MB = 1_000_000
_AGAIN = ("Retrying in", "Trying to resume")  # in what huggingface_hub logs before another try


class Arriving:
    """Files on their way into a folder.

    Attributes:
        whole: path of each file once all of it is there.
        sizes: bytes of each.
        folder: where parts of them lie until then, at any depth.
        parts: the beginning or the middle of the name of each part, which ends in .incomplete.
    """

    def __init__(
        self, whole: dict[str, Path], sizes: dict[str, int], folder: Path, parts: dict[str, str]
    ) -> None:
        self.whole, self.sizes, self.folder, self.parts = whole, sizes, folder, parts

    def nbytes(self) -> int:
        """Return how many bytes are there."""
        parts = {}
        with contextlib.suppress(OSError):  # a part that has just become a file
            parts = {path.name: path.stat().st_size for path in self.folder.rglob("*.incomplete")}
        total = 0
        for name, path in self.whole.items():
            here = [size for part, size in parts.items() if self.parts[name] in part]
            total += (
                self.sizes[name] if path.exists() else min(max(here, default=0), self.sizes[name])
            )
        return total


@contextlib.contextmanager
def shown(progress: Progress, arriving: Arriving) -> Iterator[None]:
    """Show how much of some files has arrived while the block downloads them.

    A stage of megabytes, unless all of them are there; and one line if a connection fails and
    huggingface_hub tries again.
    """
    total = sum(arriving.sizes.values())
    begun = arriving.nbytes()
    if begun >= total:
        yield
        return
    units = max(1, round(total / _MB))
    told = begun * units // total
    progress.begin("Downloading, MB", units, told)
    ended, one_at_a_time = threading.Event(), threading.Lock()

    def watch() -> None:
        nonlocal told
        last = False
        while not last:
            last = ended.wait(_POLL_S)
            if (now := arriving.nbytes() * units // total) > told:
                with one_at_a_time:
                    progress.advance(now - told)
                told = now

    def say(line: str) -> None:
        with one_at_a_time:
            progress.say(line)

    thread = threading.Thread(target=watch, name="edgetok-download", daemon=True)
    thread.start()
    try:
        with _retries_told(say):
            yield
    finally:
        ended.set()
        thread.join()


class _Retries(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say: Callable[[str], None] | None = say

    def emit(self, record: logging.LogRecord) -> None:
        if self._say is not None and any(text in record.getMessage() for text in _AGAIN):
            self._say("the connection failed; trying again ...")
            self._say = None


@contextlib.contextmanager
def _retries_told(say: Callable[[str], None]) -> Iterator[None]:
    """Put one line in the place of all that huggingface_hub logs, which would tear the bar."""
    logger = logging.getLogger("huggingface_hub")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [_Retries(say)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
