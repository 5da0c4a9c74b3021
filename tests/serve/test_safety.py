"""The server's rows of the list of faults: who may ask, and what a body may be."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgetok.serve import body, connections
from tests.serve.conftest import Process, Rule

KEY = "correct horse battery"
BODY = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def api(rule: Callable[..., Rule]) -> Rule:
    return rule()


@pytest.fixture
def locked(rule: Callable[..., Rule]) -> Rule:
    return rule(server={"key": KEY})


def ask(api: Rule, headers: dict[str, str], **changes: Any) -> httpx.Response:
    return httpx.post(api.url + "/v1/chat/completions", json=BODY | changes, headers=headers)


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8080", "localhost.evil.test", "", "[x]"])
def test_other_hosts(api: Rule, host: str) -> None:
    """A site's name may be made to point at this machine (DNS rebinding)."""
    for path in ("/v1/models", "/health", "/"):
        response = httpx.get(api.url + path, headers={"host": host})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "forbidden_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8080"])
def test_own_hosts(api: Rule, host: str) -> None:
    assert httpx.get(api.url + "/v1/models", headers={"host": host}).status_code == 200


def test_hosts_may_be_allowed(rule: Callable[..., Rule]) -> None:
    api = rule(server={"allow_host": ("box.local",)})
    assert ask(api, {"host": "box.local:8080"}).status_code == 200
    assert ask(api, {"host": "other.local"}).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://localhost:1", "app://x"])
def test_other_origins(api: Rule, origin: str) -> None:
    for response in (
        ask(api, {"origin": origin}),
        httpx.get(api.url + "/v1/models", headers={"origin": origin}),
        httpx.options(api.url + "/v1/chat/completions", headers={"origin": origin}),
    ):
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


def test_own_and_allowed_origins(rule: Callable[..., Rule]) -> None:
    api = rule(server={"allow_origin": ("app://obsidian.md", "chrome-extension://*")})
    for origin in (api.url, "app://obsidian.md", "chrome-extension://abcdef"):
        response = ask(api, {"origin": origin})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert "origin" in response.headers["vary"].lower()
        before = httpx.options(
            api.url + "/v1/chat/completions",
            headers={
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type, x-stainless-lang",
                "access-control-request-private-network": "true",
            },
        )
        assert before.status_code == 204
        assert before.headers["access-control-allow-origin"] == origin
        allowed = before.headers["access-control-allow-headers"]
        assert "authorization" in allowed
        assert "x-stainless-lang" in allowed
        assert before.headers["access-control-allow-private-network"] == "true"
    assert ask(api, {"origin": "app://other"}).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "a/json"])
def test_json_only(api: Rule, kind: str) -> None:
    """What a page may send to another site without asking is no JSON."""
    response = httpx.post(
        api.url + "/v1/chat/completions",
        content=json.dumps(BODY),
        headers={"content-type": kind} if kind else {},
    )
    assert response.status_code == 415
    assert response.json()["error"]["message"]


def test_the_key(locked: Rule) -> None:
    good = {"authorization": f"Bearer {KEY}"}
    for headers in (good, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}):
        assert ask(locked, headers).status_code == 200
    for headers in (
        {},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": "Bearer " + "é" * 20},
        {"x-api-key": ""},
    ):
        response = httpx.post(
            locked.url + "/v1/chat/completions",
            json=BODY,
            headers={name: value.encode() for name, value in headers.items()},
        )
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"
    assert httpx.get(locked.url + "/health").status_code == 200
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        assert httpx.get(locked.url + path).status_code == 401
        assert httpx.get(locked.url + "/" + path).status_code == 401


def test_the_key_is_compared_in_constant_time(repository: Path) -> None:
    source = (repository / "edgetok/serve/guard.py").read_text()
    assert "compare_digest(given.encode(), self._key)" in source
    assert "== self._key" not in source


def test_no_key_is_asked_for_where_none_is_set(api: Rule) -> None:
    for headers in ({}, {"authorization": "Bearer anything"}, {"authorization": "nonsense"}):
        assert ask(api, headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "some.name"])
def test_other_machines_need_a_key(host: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgetok.cli", "serve", str(tmp_path), "--host", host],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "EDGETOK_API_KEY" in done.stderr


def test_a_key_from_the_environment() -> None:
    made = Process("--host", "0.0.0.0", EDGETOK_API_KEY=KEY)
    try:
        port = made.address[1]
        url = f"http://127.0.0.1:{port}/v1/models"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"x-api-key": KEY}).status_code == 200
        assert not any(KEY in line for line in made.lines)
    finally:
        assert made.stop() == 130


@pytest.mark.parametrize(
    "key", ["kurz", "schlüssel-groß", "from a file\n", " padded key", "a\tb c d e"]
)
def test_a_key_that_no_client_could_send(key: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgetok.cli", "serve"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"EDGETOK_API_KEY": key},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the key ")
    assert done.stderr.count("\n") == 1
    assert key.strip() not in done.stderr


def raw(api: Rule, data: bytes, seconds: float = 10) -> bytes:
    """Send bytes and read until the server closes or has answered."""
    with socket.create_connection(api.address, timeout=seconds) as made:
        made.sendall(data)
        made.shutdown(socket.SHUT_WR) if not data else None
        found = b""
        while b"\r\n\r\n" not in found:
            piece = made.recv(65536)
            if not piece:
                break
            found += piece
        return found


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)


def test_a_body_that_says_it_is_large(api: Rule) -> None:
    found = raw(api, HEAD + b"Content-Length: 1000000000\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in found.lower()
    found = raw(api, HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{")
    assert found.split()[1] in (b"413", b"400")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_answered_when_it_was_sent(api: Rule, chunked: bool) -> None:
    """A client that sends all before it reads gets the answer, not a broken pipe."""
    body = b" " * (12 << 20)
    head = b"Content-Length: %d\r\n\r\n" % len(body)
    if chunked:
        head, body = (
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n%s\r\n0\r\n\r\n"
            % (
                len(body),
                body,
            ),
        )
    assert raw(api, HEAD + head + body, 30).startswith(b"HTTP/1.1 413")


def test_a_client_that_asks_first_is_refused_at_once(api: Rule) -> None:
    found = raw(api, HEAD + b"Expect: 100-continue\r\nContent-Length: 9000000\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413")


def test_a_body_without_end(api: Rule) -> None:
    with socket.create_connection(api.address, timeout=20) as made:
        made.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 64 << 20:
                made.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass
        assert sent < 32 << 20
    assert ask(api, {}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b"[" * 100_000,
        b'{"a": "' + b'\\"' * 1_000_000,
        b'{"model": NaN}',
        b'{"model": "fake", "model": "x"}',
        b'{"model": "\\ud800"}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe",
        b"[]",
        b"",
        b"null",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_bad_json(api: Rule, body: bytes) -> None:
    response = httpx.post(
        api.url + "/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_a_large_body(api: Rule) -> None:
    text = "x" * (4 << 20)
    assert ask(api, {}, messages=[{"role": "user", "content": text}]).status_code == 413
    short = ask(api, {}, messages=[{"role": "user", "content": text[: 1 << 18]}])
    assert short.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/messages"])
def test_others_are_answered_while_a_large_body_is_read(
    api: Rule, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()
    read = body._parsed

    def slowly(data: bytes) -> Any:
        if len(data) > 1 << 20:
            begun.set()
            assert released.wait(60)
        return read(data)

    monkeypatch.setattr(body, "_parsed", slowly)
    large = {"messages": [{"role": "user", "content": "x" * (2 << 20)}], "max_tokens": 1}
    with ThreadPoolExecutor(1) as threads:
        try:
            waiting = threads.submit(api.post, path, input="x", **large)
            assert begun.wait(60)
            assert ask(api, {}).status_code == 200
            assert not waiting.done()
        finally:
            released.set()
        # The fake model computes no vectors, and has no room for so long a text.
        assert waiting.result(60).status_code == 400


def test_a_client_that_goes_away_in_its_body_is_no_error(
    api: Rule, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (b"chat/completions", b"messages/count_tokens", b"embeddings"):
        head = HEAD.replace(b"chat/completions", path)
        with socket.create_connection(api.address, timeout=60) as made:
            made.sendall(head + b"Content-Length: 100\r\n\r\n{")
    for _ in range(3):
        assert ask(api, {}).status_code == 200
    assert not caplog.records


def test_a_template_that_eats_memory(rule: Callable[..., Rule]) -> None:
    """The model's own: refused in time while other answers go on."""
    hostile = (
        "{% for m in messages %}{% if 'bomb' in m.content %}{% for i in range(100000) %}"
        "{% for j in range(100000) %}{{ 'a' * 10000 }}{% endfor %}{% endfor %}{% endif %}"
        "{{ m.content }}{% endfor %}<|im_start|>assistant\n"
    )
    api = rule(template=hostile, rule=lambda tokens: 65)
    response = api.chat("bomb", max_tokens=2)
    assert response.status_code == 400
    assert api.chat("x", max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_request(api: Rule, data: bytes) -> None:
    found = raw(api, data)
    assert found == b"" or found.split()[1] in (b"400", b"415")
    assert ask(api, {}).status_code == 200


def test_too_many_connections(api: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there are served, further ones are told, and yet more are closed."""
    monkeypatch.setattr(connections, "MOST", 4)
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(api.address, timeout=60))

        served, told = [connect() for _ in range(4)], [connect() for _ in range(2)]
        assert connect().recv(100) == b""
        for made in served:
            made.sendall(get)
            assert made.recv(65536).startswith(b"HTTP/1.1 200")
        for made in told:
            made.sendall(get)
            found = b"".join(iter(lambda made=made: made.recv(65536), b""))
            head, _, data = found.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 2" in head
            assert json.loads(data)["error"]["code"] == "server_busy"
    assert ask(api, {}).status_code == 200


def test_connections_leave_descriptors_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 1 << 20))
    assert connections.most_connections() == 128
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert connections.most_connections() == connections.MOST


def test_slow_clients_are_closed_and_others_served(rule: Callable[..., Rule]) -> None:
    """200 that never finish their headers, one its body, one that never reads its answer."""
    api = rule(rule=lambda tokens: 65, context_tokens=1 << 22)
    slow = [socket.create_connection(api.address, timeout=120) for _ in range(200)]
    for made in slow:
        made.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    body = socket.create_connection(api.address, timeout=120)
    body.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    again = socket.create_connection(api.address, timeout=120)  # slow in its second request
    again.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = b""
    while b'"ok"' not in found:
        found += again.recv(65536)
    again.sendall(b"GET /health HTTP/1.1\r\nHo")
    reader = socket.create_connection(api.address, timeout=120)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = json.dumps(BODY | {"stream": True, "max_tokens": 1 << 20}).encode()
    reader.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    try:
        for _ in range(5):
            assert ask(api, {}, max_tokens=4).status_code == 200
        for made in (*slow, again):
            assert made.recv(100) == b""
        assert body.recv(100).startswith(b"HTTP/1.1 408")
        api.wait_until("running", 0)
    finally:
        for made in (*slow, body, again, reader):
            made.close()
