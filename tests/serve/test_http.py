"""HTTP as clients other than browsers and the official packages speak it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import h11
import pytest

from tests.serve.conftest import Rule

BODY = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
SAID = "1:HELLO"


@pytest.fixture
def api(rule: Callable[..., Rule]) -> Rule:
    return rule()


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join((line, "Host: localhost", *headers, "", "")).encode()


def post(version: str = "1.1", *headers: str, **changes: Any) -> tuple[bytes, bytes]:
    """A request's head and body."""
    data = json.dumps(BODY | changes).encode()
    length = f"Content-Length: {len(data)}"
    line = f"POST /v1/chat/completions HTTP/{version}"
    return head(line, "Content-Type: application/json", length, *headers), data


def answers(api: Rule, *pieces: bytes, methods: tuple[str, ...]) -> list[tuple[int, bytes]]:
    """Send bytes; read one response for each method, as an HTTP client takes them apart."""
    found = []
    with socket.create_connection(api.address, timeout=60) as made:
        for piece in pieces:
            made.sendall(piece)
        client = h11.Connection(h11.CLIENT)
        for method in methods:
            client.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
            client.send(h11.EndOfMessage())
            status, data = 0, b""
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    client.receive_data(made.recv(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    data += event.data
            found.append((status, data))
            if client.our_state is h11.MUST_CLOSE:
                assert made.recv(1) == b""
            else:
                client.start_next_cycle()
    return found


def text(data: bytes) -> str:
    said: str = json.loads(data)["choices"][0]["message"]["content"]
    return said


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0(api: Rule, stream: bool) -> None:
    """A stream has neither a length nor chunks: it ends with the connection."""
    ((status, data),) = answers(api, *post("1.0", stream=stream), methods=("POST",))
    assert status == 200
    if stream:
        assert data.startswith(b": reading\n\ndata: {")
        assert data.endswith(b"data: [DONE]\n\n")
    else:
        assert text(data).startswith(SAID)


def test_a_body_in_chunks_of_one_byte(api: Rule) -> None:
    line = "POST /v1/chat/completions HTTP/1.1"
    chunked = head(line, "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunks = b"".join(b"1;part=x\r\n%c\r\n" % byte for byte in json.dumps(BODY).encode())
    end = b"0\r\nX-Trailer: 1\r\n\r\n"
    ((status, data),) = answers(api, chunked, chunks, end, methods=("POST",))
    assert status == 200
    assert text(data).startswith(SAID)


def test_pipelined_requests_are_answered_in_order(api: Rule) -> None:
    whole, stream = b"".join(post()), b"".join(post(stream=True))
    health = head("GET /health HTTP/1.1")
    found = answers(api, whole + stream + health, methods=("POST", "POST", "GET"))
    assert [status for status, _ in found] == [200] * 3
    assert text(found[0][1]).startswith(SAID)
    assert found[1][1].endswith(b"data: [DONE]\n\n")
    assert json.loads(found[2][1])["status"] == "ok"


def test_a_client_that_waits_for_100_continue(api: Rule) -> None:
    before, data = post("1.1", "Expect: 100-continue", "Connection: close")
    with socket.create_connection(api.address, timeout=60) as made:
        made.sendall(before)
        assert made.recv(65536).startswith(b"HTTP/1.1 100 ")
        made.sendall(data)
        found = b"".join(iter(lambda: made.recv(65536), b""))
    assert found.startswith(b"HTTP/1.1 200 ")
    assert text(found.partition(b"\r\n\r\n")[2]).startswith(SAID)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("HEAD / HTTP/1.1", 200),
        ("HEAD /v1/models HTTP/1.1", 200),
        ("HEAD /v1/chat/completions HTTP/1.1", 405),
        ("GET /v1/chat/completions HTTP/1.1", 405),
        ("OPTIONS /v1/chat/completions HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 404),
        ("GET /v1/models/../../etc/passwd HTTP/1.1", 404),
        ("GET /v1/models/%00%ff HTTP/1.1", 404),
        ("GET /v1/chat/completions/ HTTP/1.1", 307),
    ],
)
def test_other_methods_and_paths(api: Rule, line: str, status: int) -> None:
    method = line.split()[0]
    ((found, data),) = answers(api, head(line), methods=(method,))
    assert found == status
    if method == "HEAD":
        assert data == b""
    elif status >= 400:
        assert json.loads(data)["error"]["message"]


def test_a_web_socket_is_not_offered(api: Rule, caplog: pytest.LogCaptureFixture) -> None:
    """The page itself is the answer, and no page can fill the log by asking."""
    asked = head("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket")
    ((status, data),) = answers(api, asked, methods=("GET",))
    assert status == 200
    assert re.match(rb"<!doctype html>", data, re.IGNORECASE)
    assert not caplog.records


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Content-Type: application/json; charset=utf-8",), 200),
        (("Content-Type: Application/JSON",), 200),
        (("Content-Type: application/vnd.api+json",), 415),
        (("Content-Type: text/json",), 415),
        (("Content-Type: multipart/form-data; boundary=x",), 415),
        (("Content-Type: application/json, application/json",), 415),
        (("Content-Type: application/json", "Content-Type: text/plain"), 415),
        (("Content-Type: application/json", "Content-Encoding: gzip"), 415),
    ],
)
def test_content_types(api: Rule, headers: tuple[str, ...], status: int) -> None:
    data = json.dumps(BODY).encode()
    length = f"Content-Length: {len(data)}"
    before = head("POST /v1/chat/completions HTTP/1.1", length, *headers)
    ((found, _),) = answers(api, before, data, methods=("POST",))
    assert found == status
