"""Deadlines of a connection, which uvicorn has none of before the first request.

A client that sends its headers byte by byte, or never reads, would hold a connection for ever.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 15.0  # from the connection, or the last response, until a request's headers are here
STALLED_S = 15.0  # that a client may read nothing while its buffer is full


class Connection(H11Protocol):
    """One connection of HTTP/1.1, closed when its client is too slow."""

    _headers_timer: asyncio.TimerHandle | None = None
    _stalled_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._wait_for_headers()

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
