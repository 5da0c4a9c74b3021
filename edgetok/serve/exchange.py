"""One request and its response over HTTP: JSON, or server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from edgetok.serve.answers import Answer, Writer
from edgetok.serve.body import Gone, read_json
from edgetok.serve.failure import Refusal, refusal_of
from edgetok.serve.protocols.protocol import Call, Payload, Protocol
from edgetok.serve.request import Event

PULSE_S = 3.0  # between comments while nothing else is to be said
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT: Message = {"type": "http.response.body", "body": b": reading\n\n", "more_body": True}
GONE = 499  # in the metrics: the client went away before there was a status
STOPPING = Refusal(503, "the server is stopping", code="server_stopping")


class Exchange:
    """Answers requests of one protocol. An ASGI application."""

    def __init__(self, protocol: Protocol, writer: Writer, route: str) -> None:
        """Prepare; `route` is the name in the metrics."""
        self._protocol, self._writer, self._route = protocol, writer, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self._writer.asked()
        status, refusal = 0, None
        call: Call | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            call = await read_json(scope, receive, self._protocol.parse)
            await while_there(receive, self._answered(call, sending))
        except Gone:
            pass
        except asyncio.CancelledError:
            refusal = STOPPING
        except Exception as error:
            refusal = refusal_of(error)
        if refusal is not None and status == 0:
            body = JSONResponse(self._protocol.error(refusal), refusal.status, refusal.headers)
            await body(scope, receive, sending)
        elif refusal is not None and call is not None:
            await sending(_part(call.rendering.failed(refusal), more=False))
        self._writer.metrics.answered(self._route, status or GONE)

    async def _answered(self, call: Call, send: Send) -> None:
        async with await self._writer.begin(call.request) as answer:
            await (self._stream if call.stream else self._whole)(call, answer, send)

    async def _whole(self, call: Call, answer: Answer, send: Send) -> None:
        answers = await answer.whole()
        body = call.rendering.body(answer.served, answers, answer.usage)
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
        ]
        await send(
            {"type": "http.response.start", "status": 200, "headers": headers + _ignored(call)}
        )
        await send({"type": "http.response.body", "body": data})

    async def _stream(self, call: Call, answer: Answer, send: Send) -> None:
        rendering = call.rendering
        await send(
            {"type": "http.response.start", "status": 200, "headers": _STREAM + _ignored(call)}
        )
        await send(_COMMENT)
        await send(_part(rendering.begin(answer.served, answer.usage)))
        async with contextlib.aclosing(_pulsed(answer.events())) as events:
            async for event in events:
                await send(_COMMENT if event is None else _part(rendering.event(event)))
        await send(_part(rendering.end(answer.usage), more=False))


async def while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do some work unless the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _pulsed(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event | None, None]:
    """Events as they come, and None each time that nothing has come for a while."""
    waiting: asyncio.Task[Event] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait((waiting,), timeout=PULSE_S))[0]:
                yield None
            try:
                event = waiting.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)  # its error is taken note of
        await events.aclose()


def _part(payloads: Iterable[Payload], *, more: bool = True) -> Message:
    data = b"".join(_encoded(payload) for payload in payloads)
    return {"type": "http.response.body", "body": data, "more_body": more}


def _encoded(payload: Payload) -> bytes:
    name, data = payload
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {data}\n\n".encode()


def _ignored(call: Call) -> list[tuple[bytes, bytes]]:
    """Name fields that were ignored: nothing is dropped silently."""
    names = [name for name in call.ignored if name.isascii() and name.isidentifier()][:20]
    return [(b"x-edgetok-ignored", ", ".join(names).encode())] if names else []
