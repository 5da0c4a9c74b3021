"""A bound that catches a hang and never a busy machine: refusals take milliseconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_once(seconds: float = 20) -> Iterator[None]:
    """Check that the block takes less processor time: no size in a file is counted up to."""
    begun = time.thread_time()
    yield
    took = time.thread_time() - begun
    assert took < seconds, f"took {took:.1f} s of processor time"
