"""Endpoints whose answer is computed at once, without writing: vectors and rankings."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgetok.errors import ArtefactError
from edgetok.model import Model
from edgetok.serve.answers import Writer
from edgetok.serve.body import Gone, read_json
from edgetok.serve.budget import Place
from edgetok.serve.exchange import GONE, STOPPING, while_there
from edgetok.serve.failure import Refusal, refusal_of
from edgetok.serve.models import Served
from edgetok.serve.protocols.openai_shared import error_body

T = TypeVar("T")


class Computed(ABC):
    """Answers with one JSON object. An ASGI application."""

    route = ""  # its name in the metrics

    def __init__(self, writer: Writer) -> None:
        """Share models, memory and metrics with the protocols that write."""
        self.writer = writer

    @abstractmethod
    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body of the response to a request's.

        Raises:
            Refusal: something is wrong or not supported.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.writer.asked()
        response: JSONResponse | None = None
        refusal: Refusal | None = None

        async def work(body: dict[str, Any]) -> None:
            nonlocal response
            # In a thread: vectors are written as megabytes of numbers.
            response = await asyncio.to_thread(JSONResponse, await self.answer(body))

        try:
            body = await read_json(scope, receive, lambda body: body)
            await while_there(receive, work(body))
        except Gone:
            pass
        except asyncio.CancelledError:
            refusal = STOPPING
        except Exception as error:
            refusal = refusal_of(error)
        if refusal is not None:
            response = JSONResponse(error_body(refusal), refusal.status, refusal.headers)
        if response is not None:
            await response(scope, receive, send)
        self.writer.metrics.answered(self.route, GONE if response is None else response.status_code)

    @contextlib.asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Computation]:
        """Keep a place in the queue, and a model loaded, inside the block.

        They are given back once no thread computes any more, which may be later than the block's
        end: a thread cannot be stopped when its client goes away.

        Raises:
            Refusal: there is no such model, no memory for it, or the queue is full.
        """
        self.writer.models.find(name)
        made: Computation | None = None
        stack = contextlib.AsyncExitStack()
        try:
            place = stack.enter_context(self.writer.budget.place())
            served, model = await stack.enter_async_context(self.writer.models.using(name))
            made = Computation(self.writer, place, served, model)
            try:
                yield made
            except ArtefactError:
                served.broken = True
                raise
        finally:
            closing = self.writer.close_later(_given_back(made, stack))
            if made is None or made.settled:
                await asyncio.shield(closing)


class Computation:
    """A request's place, its model, and the thread that computes for it."""

    def __init__(self, writer: Writer, place: Place, served: Served, model: Model) -> None:
        """Prepare; made by `Computed.using`."""
        self.served, self.model = served, model
        self._writer, self._place = writer, place
        self._thread: asyncio.Future[Any] | None = None

    async def run(self, function: Callable[..., T], *given: Any) -> T:
        """Compute in a thread. When this is cancelled, the thread goes on: see `settle`."""
        self._thread = asyncio.ensure_future(asyncio.to_thread(function, *given))
        found: T = await asyncio.shield(self._thread)
        return found

    @property
    def settled(self) -> bool:
        """Return whether no thread computes."""
        return self._thread is None or self._thread.done()

    async def settle(self) -> None:
        """Wait until no thread computes."""
        if self._thread is not None:
            await asyncio.wait((self._thread,))

    async def make_room(self, texts: Sequence[Sequence[int]], param: str) -> None:
        """Wait for the memory that the longest of some texts takes in a cache of its own.

        Raises:
            Refusal: it is longer than the context, or the memory never suffices.
        """
        longest, most = max(map(len, texts)), self.model.context_tokens
        if longest > most:
            raise Refusal(
                400,
                f"a text has {longest:,} tokens, expected at most {most:,}; shorten it",
                param=param,
                code="context_length_exceeded",
            )
        nbytes = self.model.backend.cache_bytes(max(1, longest))
        await self._writer.models.make_way(nbytes)
        await self._place.borrow(nbytes)


async def _given_back(made: Computation | None, stack: contextlib.AsyncExitStack) -> None:
    try:
        if made is not None:
            await made.settle()
    finally:
        await stack.aclose()
