"""Deadlines of a connection, which uvicorn has none of before the first request, and their number.

A client that sends its headers byte by byte, or never reads, would hold a connection for ever. Many
that send nothing would take all file descriptors, which the server needs for models and caches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from uvicorn.protocols.http.h11_impl import H11Protocol

from edgetok.serve.failure import Refusal
from edgetok.serve.protocols.openai_shared import error_body

HEADERS_S = 15.0  # from the connection, or the last response, until a request's headers are here
STALLED_S = 15.0  # that a client may read nothing while its buffer is full
MOST = 512  # connections whose requests are read


def most_connections() -> int:
    """Return how many connections are served: half of the descriptors that the process may have."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft != resource.RLIM_INFINITY:
            return max(1, min(MOST, soft // 2))
    return MOST


def _crowded() -> bytes:
    message = "too many connections; try again later"
    refusal = Refusal(503, message, code="server_busy")
    data = json.dumps(error_body(refusal)).encode()
    head = f"content-type: application/json\r\nretry-after: {refusal.headers['retry-after']}\r\n"
    return (
        f"HTTP/1.1 503 Service Unavailable\r\n{head}content-length: {len(data)}\r\n"
        "connection: close\r\n\r\n"
    ).encode() + data


class Connection(H11Protocol):
    """One connection of HTTP/1.1, closed when its client is too slow.

    Requests of those that are too many get status 503, and half as many more get nothing at all.
    """

    _too_many = False
    _headers_timer: asyncio.TimerHandle | None = None
    _stalled_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        count, most = len(self.connections), most_connections()
        self._too_many = count > most
        if count > most + most // 2:
            transport.abort()
        else:
            self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, unless there are too many connections."""
        if self._too_many:
            self.transport.write(_crowded())
            self.transport.close()
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        _stop(self._headers_timer)
        _stop(self._stalled_timer)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request's headers."""
        self._wait_for_headers()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._stalled_timer = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it reads again."""
        _stop(self._stalled_timer)
        super().resume_writing()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: every page may ask for a WebSocket, and gets what it asked for without."""

    def _wait_for_headers(self) -> None:
        _stop(self._headers_timer)
        self._headers_timer = self.loop.call_later(HEADERS_S, self._headers_late)

    def _headers_late(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and not self.transport.is_closing():
            self.transport.abort()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
