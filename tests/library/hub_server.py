"""A stand-in for the hub: the part of its HTTP interface that downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 1 << 20
NEXT_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Repository:
    """What one repository of the stand-in holds.

    Attributes:
        folder: its files.
        gated: whether it answers 401.
        commit: changed by a test for a new version.
        tags: as the hub gives them.
        revisions: names of commits; "main" is one without being named.
    """

    folder: Path
    gated: bool = False
    commit: str = COMMIT
    tags: tuple[str, ...] = ()
    revisions: tuple[str, ...] = ()


@dataclass
class Hub:
    """The stand-in.

    Attributes:
        repositories: by hub id.
        cut_after: bytes of a file after which the connection ends, once for each file.
        broken: files that are listed and answered with 403, which nobody asks for again.
        pause_s: seconds between two pieces of a file.
        requests: (method, path, Range) of every request.
        sent: bytes of each file that were sent.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    cut_after: int | None = None
    broken: set[str] = field(default_factory=set)
    pause_s: float = 0.0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def downloaded(self) -> list[str]:
        """Names of the files whose contents were asked for."""
        return [
            path.rpartition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repository = self._repository(match[1], match[2])
            if repository is not None:
                self._info(match[1], repository)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository(match[1], match[2])
            if repository is not None:
                self._file(repository, match[3])
        else:
            self._fail(404, "EntryNotFound")

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._fail(401, "RepoNotFound")
        elif repository.gated:
            self._fail(401, "GatedRepo")
            return None
        elif revision not in (None, "main", repository.commit, *repository.revisions):
            self._fail(404, "RevisionNotFound")
            return None
        return repository

    def _info(self, name: str, repository: Repository) -> None:
        files = sorted(p for p in repository.folder.rglob("*") if p.is_file())
        body = json.dumps(
            {
                "_id": "1",
                "id": name,
                "sha": repository.commit,
                "tags": list(repository.tags),
                "siblings": [
                    {
                        "rfilename": str(p.relative_to(repository.folder)),
                        "size": p.stat().st_size,
                        "blobId": _digest(p),
                    }
                    for p in files
                ],
            }
        ).encode()
        self._head(200, len(body), {"Content-Type": "application/json"})
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, repository: Repository, name: str) -> None:
        path = repository.folder / name
        if not path.is_file():
            self._fail(404, "EntryNotFound")
            return
        if name in self.hub.broken:
            self._fail(403, "Broken")
            return
        data = path.read_bytes()
        headers = {
            "ETag": f'"{_digest(path)}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
        }
        first = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(match[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._head(206 if first else 200, len(data) - first, headers)
        if self.command == "HEAD":
            return
        end = len(data)
        cut = self.hub.cut_after
        if cut is not None and end - first > cut and name not in self.hub.cut:
            self.hub.cut.add(name)
            end = first + cut
        for begin in range(first, end, PIECE_BYTES):
            piece = data[begin : min(end, begin + PIECE_BYTES)]
            try:
                self.wfile.write(piece)
            except OSError:  # who asked is gone
                self.close_connection = True
                return
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(piece)
            time.sleep(self.hub.pause_s)
        if end < len(data):
            self.wfile.flush()
            self.close_connection = True

    def _fail(self, status: int, code: str) -> None:
        body = json.dumps({"error": code}).encode()
        self._head(status, len(body), {"X-Error-Code": code, "X-Error-Message": code})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
