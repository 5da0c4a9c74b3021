"""One budget of memory for models and answers, and the queue of answers that wait for a share.

An answer is let in when the KV cache that it may need at most fits beside all others', so no answer
ever ends because another one took the memory. A model is loaded only into memory that no answer
has, and that none which waits already will need.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgetok.serve.failure import Refusal


@dataclass(order=True, slots=True)
class _Waiting:
    priority: int
    number: int
    nbytes: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class Place:
    """An answer's place among those that wait or are written; made by `MemoryBudget.place`.

    Attributes:
        nbytes: that it has borrowed; None before.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        """Belong to a budget."""
        self._budget = budget
        self.nbytes: int | None = None

    async def borrow(self, nbytes: int, priority: int = 0) -> None:
        """Wait for a turn and for memory; lower priorities first, then who came first.

        Raises:
            Refusal: so much memory can never be free.
        """
        await self._budget.lend(self, nbytes, priority)


class MemoryBudget:
    """Bytes for models and for KV caches. Used by one event loop.

    Attributes:
        total_bytes: bytes of both together.
        model_bytes: bytes of loaded models.
        cache_bytes: promised to answers that are written now.
        running: answers that are written now.
        most_running, most_waiting: limits on answers.
    """

    def __init__(self, total_bytes: int, *, most_running: int, most_waiting: int) -> None:
        """Begin without models and answers."""
        self.total_bytes, self.model_bytes, self.cache_bytes = total_bytes, 0, 0
        self.running, self._coming = 0, 0
        self.most_running, self.most_waiting = most_running, most_waiting
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()

    @property
    def free_bytes(self) -> int:
        """Bytes that are promised to nobody."""
        return self.total_bytes - self.model_bytes - self.cache_bytes

    @property
    def most_cache_bytes(self) -> int:
        """Bytes that all KV caches together may ever have beside the loaded models."""
        return self.total_bytes - self.model_bytes

    @property
    def spare_bytes(self) -> int:
        """Bytes for one more model: what remains when everybody who waits can still be let in."""
        waiting = (one.nbytes for one in self._waiting if not one.admitted.done())
        return self.most_cache_bytes - max(self.cache_bytes, *waiting, 0)

    @property
    def waiting(self) -> int:
        """Answers that wait to be let in."""
        return sum(not one.admitted.done() for one in self._waiting)

    def add_model(self, nbytes: int) -> None:
        """Count a model that was loaded, or with a negative number let go of."""
        self.model_bytes += nbytes
        self._admit()

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """Keep a place for an answer until the context ends, from before its size is known.

        Raises:
            Refusal: as many answers wait as may.
        """
        # Those on their way count as well, so that none of a burst is refused after it was let in.
        held = self.running + self.waiting + self._coming
        full = held >= self.most_running + self.most_waiting
        if full or (self._waiting and self.waiting + self._coming >= self.most_waiting):
            raise Refusal(
                503,
                f"{self.running} answers are being written and {self.waiting} wait; try again "
                "later",
                code="server_busy",
            )
        made = Place(self)
        self._coming += 1
        try:
            yield made
        finally:
            if made.nbytes is None:
                self._coming -= 1
            else:
                self._give_back(made.nbytes)

    async def lend(self, place: Place, nbytes: int, priority: int) -> None:
        """Wait until a place has its turn and memory. See `Place.borrow`."""
        if nbytes > self.most_cache_bytes:
            raise self._too_large(nbytes)
        one = _Waiting(
            priority, next(self._numbers), nbytes, asyncio.get_running_loop().create_future()
        )
        heapq.heappush(self._waiting, one)
        self._coming -= 1
        self._admit()
        try:
            await one.admitted
            place.nbytes = nbytes
        except (asyncio.CancelledError, Refusal) as error:
            self._coming += 1  # which the place's context gives back
            if not isinstance(error, Refusal) and not one.admitted.cancelled():
                self._give_back(nbytes)
            self._admit()
            raise

    def _too_large(self, nbytes: int) -> Refusal:
        return Refusal(
            503,
            f"the answer's cache may need {nbytes:,} bytes and the memory budget has "
            f"{max(0, self.most_cache_bytes):,} beside the loaded models; ask for fewer tokens, or "
            "start the server with a larger --memory",
            code="memory_exceeded",
        )

    def _give_back(self, nbytes: int) -> None:
        self.cache_bytes -= nbytes
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        """Let in whoever is first and fits; nobody overtakes, so a large answer is not starved."""
        while self._waiting:
            first = self._waiting[0]
            if not first.admitted.done() and first.nbytes > self.most_cache_bytes:
                first.admitted.set_exception(self._too_large(first.nbytes))
            elif not first.admitted.done():
                if self.running >= self.most_running or first.nbytes > self.free_bytes:
                    return
                self.running += 1
                self.cache_bytes += first.nbytes
                first.admitted.set_result(None)
            heapq.heappop(self._waiting)
