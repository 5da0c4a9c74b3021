"""Read a request's JSON body within limits of size, depth and time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.types import Receive, Scope

from edgetok.errors import OptionError
from edgetok.formats import strict_json
from edgetok.serve.failure import Refusal

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
_LARGE_BYTES = 64 << 10  # of a body, which is then read in a thread
DRAINED_BYTES = 16 << 20  # of a body that is too large, before it is refused
DRAINED_S = 2.0
BODY_S = 20.0  # until all of a body has to be here

T = TypeVar("T")


class Gone(Exception):
    """The client went away before its request was complete."""


async def read_json(scope: Scope, receive: Receive, understand: Callable[[dict[str, Any]], T]) -> T:
    """Return what a function makes of the object that a request's body holds.

    A large body is read in a thread: megabytes of JSON take longer than others want to wait.

    Raises:
        Refusal: it is no JSON object, or too large, too deep or too slow.
        Gone: the client went away.
        Exception: whatever `understand` raises.
    """
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refusal(
            415,
            f"the content type is {kind.decode('latin-1')!r:.100}, expected 'application/json'",
            code="unsupported_media_type",
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refusal(415, "the body is compressed, expected plain JSON")
    declared = headers.get(b"content-length", b"0")
    if len(declared) > 12 or int(declared) > MAX_BYTES:
        # A client that asks first is told at once; others read no answer before all is sent.
        if headers.get(b"expect", b"").lower() != b"100-continue":
            await _drain(receive)
        raise _too_large()
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                data += message.get("body", b"")
                if len(data) > MAX_BYTES:
                    if message.get("more_body", False):
                        await _drain(receive)
                    raise _too_large()
                if not message.get("more_body", False):
                    break
    except TimeoutError as error:
        raise Refusal(408, f"the body took longer than {BODY_S:.0f} s") from error

    def read() -> T:
        return understand(_parsed(bytes(data)))

    return read() if len(data) < _LARGE_BYTES else await asyncio.to_thread(read)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        return strict_json.loads_object(
            data, "body", max_bytes=MAX_BYTES, max_depth=MAX_DEPTH, error=OptionError
        )
    except OptionError as error:
        raise Refusal(400, str(error), code="invalid_json") from error


async def _drain(receive: Receive) -> None:
    """Read and drop what is left of a body, within limits.

    A client that still sends when the connection ends sees a broken pipe, not the answer.
    """
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINED_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _too_large() -> Refusal:
    return Refusal(
        413, f"the body is larger than {MAX_BYTES:,} bytes; shorten it", code="body_too_large"
    )
