"""Access checks of hosts, origins and the key, before anything of a request is read.

A page of any web site may send requests to a server on its visitor's machine. So names that are
not this machine's are refused (the site's own name may point here: DNS rebinding), and so are
requests that a browser sends for another site, unless it is allowed by name.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable
from hmac import compare_digest

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgetok.serve.failure import Refusal, request_id

_OPEN = {"/", "/health"}  # paths that need no key and tell nothing
_METHODS = "GET, POST, OPTIONS"
_HEADERS = "authorization, content-type, x-api-key, anthropic-version"


class Guard:
    """Refuses what comes from elsewhere; passes the rest on with its path made plain."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        refuse: ASGIApp,
    ) -> None:
        """Prepare.

        Args:
            app: what answers.
            key: that requests must have; None asks for none.
            hosts: names of this machine beside localhost and numeric addresses; "*" is any.
            origins: of pages that may ask, e.g. "https://example.org"; an ending "*" is any.
            refuse: what answers for those that are refused; finds the refusal in the scope.
        """
        self._app, self._refuse = app, refuse
        self._key = None if key is None else key.encode()
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._origins = tuple(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = re.sub("/{2,}", "/", scope["path"])
        request_id.set(name := "req_" + secrets.token_hex(12))
        send = _with_id(send, name)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_host(headers.get("host", ""))
            self._check_origin(origin, headers.get("host", ""))
        except Refusal as refusal:
            await self._refused(scope, receive, send, refusal)
            return
        if scope["method"] == "OPTIONS" and origin is not None:
            await self._preflight(headers)(scope, receive, _allowing(send, origin))
            return
        sending = send if origin is None else _allowing(send, origin)
        if scope["path"] not in _OPEN and not self._has_key(headers):
            await self._refused(scope, receive, sending, _no_key())
            return
        await self._app(scope, receive, sending)

    async def _refused(self, scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
        scope["refusal"] = refusal
        await self._refuse(scope, receive, send)

    def _check_host(self, host: str) -> None:
        name = re.sub(r":\d+$", "", host.strip()).lower()
        if "*" in self._hosts or name in self._hosts or _is_address(name.strip("[]")):
            return
        if not name:
            raise Refusal(
                403, "the request names no host; send a Host header", code="forbidden_host"
            )
        raise Refusal(
            403,
            f"the host {name!r:.100} is not known; start the server with --allow-host {name:.100}",
            code="forbidden_host",
        )

    def _check_origin(self, origin: str | None, host: str) -> None:
        if origin is None or origin.partition("://")[2] == host:
            return
        for allowed in self._origins:
            if origin == allowed or (allowed.endswith("*") and origin.startswith(allowed[:-1])):
                return
        raise Refusal(
            403,
            f"pages of {origin!r:.100} may not ask; start the server with --allow-origin "
            f"{origin:.100}",
            code="forbidden_origin",
        )

    def _has_key(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        given = headers.get("x-api-key", "")
        kind, _, word = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = word.strip()
        return compare_digest(given.encode(), self._key)

    def _preflight(self, headers: Headers) -> Response:
        wanted = headers.get("access-control-request-headers", _HEADERS)
        answer = {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": wanted,
            "access-control-max-age": "600",
        }
        if headers.get("access-control-request-private-network") == "true":
            answer["access-control-allow-private-network"] = "true"
        return Response(status_code=204, headers=answer)


def _no_key() -> Refusal:
    return Refusal(
        401,
        "no valid key; send the server's key as 'Authorization: Bearer KEY'",
        code="invalid_api_key",
    )


def _is_address(name: str) -> bool:
    """Return whether a host is numeric: no name can be made to point at it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_id(send: Send, name: str) -> Send:
    """Give the response a name, as clients of OpenAI and of Anthropic look for it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers["request-id"] = name
        await send(message)

    return sending


def _allowing(send: Send, origin: str) -> Send:
    """Tell the browser that this origin may read the response."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = (
                "retry-after, x-request-id, x-edgetok-ignored"
            )
            headers.add_vary_header("Origin")
        await send(message)

    return sending
