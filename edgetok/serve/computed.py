"""Endpoints whose answer is computed at once, without writing: vectors and rankings."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgetok.model import Model
from edgetok.serve.answers import Writer
from edgetok.serve.body import Gone, read_json
from edgetok.serve.budget import Place
from edgetok.serve.exchange import GONE, STOPPING, while_there
from edgetok.serve.failure import Refusal, refusal_of
from edgetok.serve.models import Served
from edgetok.serve.openai_shared import error_body


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
        response: JSONResponse | None = None
        refusal: Refusal | None = None

        async def work(body: dict[str, Any]) -> None:
            nonlocal response
            response = JSONResponse(await self.answer(body))

        try:
            await while_there(receive, work(await read_json(scope, receive)))
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
    async def using(self, name: str) -> AsyncIterator[tuple[Place, Served, Model]]:
        """Keep a place in the queue, and a model loaded, inside the block.

        Raises:
            Refusal: there is no such model, no memory for it, or the queue is full.
        """
        self.writer.models.find(name)
        with self.writer.budget.place() as place:
            async with self.writer.models.using(name) as (served, model):
                yield place, served, model

    async def make_room(
        self, place: Place, model: Model, texts: Sequence[Sequence[int]], param: str
    ) -> None:
        """Wait for the memory that the longest of some texts takes in a cache of its own.

        Raises:
            Refusal: it is longer than the context, or the memory never suffices.
        """
        longest = max(map(len, texts))
        if longest > model.context_tokens:
            raise Refusal(
                400,
                f"a text has {longest:,} tokens, expected at most {model.context_tokens:,}; "
                "shorten it",
                param=param,
                code="context_length_exceeded",
            )
        await place.borrow(model.backend.cache_bytes(max(1, longest)))
