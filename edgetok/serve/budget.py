"""One budget of memory for models and answers, and the queue of answers that wait for a share.

An answer is let in when the KV cache that it may need at most fits beside all others', so no answer
ever ends because another one took the memory.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from edgetok.serve.failure import Refusal


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    number: int
    nbytes: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class MemoryBudget:
    """Bytes for models and for KV caches. Used by one event loop.

    Attributes:
        total_bytes: of both together.
        model_bytes: of loaded models.
        cache_bytes: promised to answers that are written now.
        running: answers that are written now.
        most_running, most_waiting: limits on answers.
    """

    def __init__(self, total_bytes: int, *, most_running: int, most_waiting: int) -> None:
        """Begin without models and answers."""
        self.total_bytes, self.model_bytes, self.cache_bytes = total_bytes, 0, 0
        self.running = 0
        self.most_running, self.most_waiting = most_running, most_waiting
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()

    @property
    def free_bytes(self) -> int:
        """Bytes that are promised to nobody."""
        return self.total_bytes - self.model_bytes - self.cache_bytes

    @property
    def waiting(self) -> int:
        """Answers that wait to be let in."""
        return sum(not one.admitted.done() for one in self._waiting)

    def add_model(self, nbytes: int) -> None:
        """Count a model that was loaded, or with a negative number let go of."""
        self.model_bytes += nbytes
        self._admit()

    def check_room(self) -> None:
        """Refuse what would have to wait behind a full queue.

        Raises:
            Refusal: as many answers wait as may.
        """
        full = self.running >= self.most_running or self._waiting
        if full and self.waiting >= self.most_waiting:
            raise Refusal(
                503,
                f"{self.running} answers are being written and {self.waiting} wait; try again "
                "later",
                code="server_busy",
            )

    async def borrow(self, nbytes: int, priority: int = 0) -> None:
        """Wait for a place and for memory; lower priorities first, then who came first.

        Raises:
            Refusal: the queue is full, or so much memory can never be free.
        """
        if nbytes > self.total_bytes - self.model_bytes:
            raise Refusal(
                503,
                f"the answer's cache may need {nbytes:,} bytes and the memory budget has "
                f"{max(0, self.total_bytes - self.model_bytes):,} beside the loaded models; ask "
                "for fewer tokens, or start the server with a larger --memory",
                code="memory_exceeded",
            )
        self.check_room()
        one = _Waiting(
            priority, next(self._numbers), nbytes, asyncio.get_running_loop().create_future()
        )
        heapq.heappush(self._waiting, one)
        self._admit()
        try:
            await one.admitted
        except asyncio.CancelledError:
            if not one.admitted.cancelled():
                self.give_back(nbytes)
            self._admit()
            raise

    def give_back(self, nbytes: int) -> None:
        """End what `borrow` began."""
        self.cache_bytes -= nbytes
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        """Let in whoever is first and fits; nobody overtakes, so a large answer is not starved."""
        while self._waiting:
            first = self._waiting[0]
            if not first.admitted.done():
                if self.running >= self.most_running or first.nbytes > self.free_bytes:
                    return
                self.running += 1
                self.cache_bytes += first.nbytes
                first.admitted.set_result(None)
            heapq.heappop(self._waiting)
