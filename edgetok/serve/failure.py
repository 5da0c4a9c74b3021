"""Refusals: why a request gets no answer, before a protocol puts it into its own words."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from edgetok.errors import (
    ArtefactError,
    BusyError,
    ContextError,
    GrammarError,
    OutputError,
    UserError,
)

log = logging.getLogger("edgetok.serve")
# Of the request that is being answered: a client is told it, and the log of an internal error.
request_id: ContextVar[str] = ContextVar("request_id", default="-")
RETRY_S = 2  # that a client is asked to wait where the server is full


class Refusal(Exception):
    """A request that gets an error in place of an answer.

    Attributes:
        status: of HTTP.
        message: what was found, what was expected, what to do.
        param: the field of the request that is wrong, e.g. "messages.0.content"; None: no single
            one.
        code: a stable word for programs, e.g. "context_length_exceeded"; None: the status says it.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of HTTP that belong to it."""
        if self.status in (408, 413):  # the rest of the body is not read
            return {"connection": "close"}
        return {"retry-after": str(RETRY_S)} if self.status == 503 else {}


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that an error means; one that nobody expected is logged."""
    if isinstance(error, Refusal):
        return error
    message = str(error)
    if isinstance(error, ContextError):
        return Refusal(400, message, code="context_length_exceeded")
    if isinstance(error, BusyError):
        return Refusal(503, message, code="server_busy")
    if isinstance(error, (ArtefactError, OutputError)):
        log.error("%s", message)
        return Refusal(503, message, code="model_unavailable")
    if isinstance(error, GrammarError):
        return Refusal(400, message, code="invalid_schema")
    if isinstance(error, UserError):
        return Refusal(400, message)
    log.error("request %s: an error that nobody expected", request_id.get(), exc_info=error)
    return Refusal(500, "internal error; the server's log has the details", code="internal_error")
