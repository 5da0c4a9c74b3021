"""Run the server: sockets, memory, models, uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import psutil
import uvicorn
from starlette.types import ASGIApp

from edgetok.errors import OptionError
from edgetok.runtime.options import RunChanges
from edgetok.serve.answers import Writer
from edgetok.serve.app import application
from edgetok.serve.budget import MemoryBudget
from edgetok.serve.connections import Connection
from edgetok.serve.failure import Refusal
from edgetok.serve.metrics import Metrics
from edgetok.serve.models import ModelPool
from edgetok.serve.options import ServeOptions

_GRACE_S = 3  # that answers may take to end when the server stops
_LEAST_BYTES = 64 << 20
# asyncio accepts as many as its backlog before it looks at any, each of them a descriptor.
_AT_ONCE = 64
_WAITING = 2048


def serve(
    places: Sequence[tuple[str, Path]],
    options: ServeOptions,
    *,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    **run: Unpack[RunChanges],
) -> None:
    """Serve models until the process is told to stop.

    Args:
        places: names and artefacts. The first is loaded at once.
        options: options of the server.
        tell: shows a line to the user.
        progress: see `Model.load`.
        run: options of all models.

    Raises:
        UserError: a model cannot be loaded, or an option is out of range.
        OSError: the address cannot be listened on.
    """
    listening = _listen(options.host, options.port)
    try:
        asyncio.run(_serve(places, options, listening, tell, progress, run))
    finally:
        listening.close()


def application_of(
    places: Sequence[tuple[str, Path]],
    options: ServeOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
    **run: Unpack[RunChanges],
) -> ASGIApp:
    """Return the server as an ASGI application, for programs that listen themselves.

    Its first model is loaded when it starts (ASGI's lifespan). Limits on slow clients are those of
    whoever listens.

    Args:
        places: names and artefacts.
        options: options of the server; address and port are not looked at.
        progress: see `Model.load`.
        run: options of all models.

    Raises:
        UserError: an artefact is damaged, or an option is out of range.
    """
    writer = _writer(places, options, progress, run)
    return application(writer, options, at_start=next(iter(writer.models.models)))


def _writer(
    places: Sequence[tuple[str, Path]],
    options: ServeOptions,
    progress: Callable[[int, int], None] | None,
    run: RunChanges,
) -> Writer:
    budget = MemoryBudget(
        _budget_bytes(options), most_running=options.parallel, most_waiting=options.queue
    )
    models = ModelPool(places, budget, progress=progress, **run)
    models.check_fits()
    return Writer(models, budget, Metrics())


async def _serve(
    places: Sequence[tuple[str, Path]],
    options: ServeOptions,
    listening: socket.socket,
    tell: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
    run: RunChanges,
) -> None:
    writer = _writer(places, options, progress, run)
    models = writer.models
    first = next(iter(models.models))
    try:
        async with models.using(first):
            pass
    except Refusal as error:
        raise OptionError(error.message) from error

    def started() -> None:
        for line in _told(models, options, listening):
            tell(line)

    await make_server(writer, options, started).serve(sockets=[listening])


def make_server(
    writer: Writer, options: ServeOptions, started: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Return a server that waits to be run on sockets.

    Args:
        writer: of answers.
        options: options of the server.
        started: called once it answers; from then on an interrupt ends it in order.
    """
    config = uvicorn.Config(
        application(writer, options),
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
        backlog=_AT_ONCE,
    )
    return _Server(config, started)


class _Server(uvicorn.Server):
    """Accepts a few connections at once, while many may wait to be accepted."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_WAITING)
        self._on_start()


def _told(models: ModelPool, options: ServeOptions, listening: socket.socket) -> list[str]:
    """Lines for the user: addresses, models, and where the memory goes."""
    budget = models.budget
    host = f"[{options.host}]" if ":" in options.host else options.host
    mb = 1e-6
    return [
        f"memory budget {budget.total_bytes * mb:,.0f} MB: models {budget.model_bytes * mb:,.0f} "
        f"MB (with {models.prefix_bytes * mb:,.0f} MB for beginnings of prompts), KV caches "
        f"{budget.free_bytes * mb:,.0f} MB",
        f"serving {', '.join(models.models)} at http://{host}:{listening.getsockname()[1]}/v1",
    ]


def _budget_bytes(options: ServeOptions) -> int:
    found = options.memory_bytes
    if found is None:
        found = int(psutil.virtual_memory().available) // 2
    if found < _LEAST_BYTES:
        raise OptionError(
            f"a memory budget of {found:,} bytes, expected at least {_LEAST_BYTES:,}; give --memory"
        )
    return found


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        # At once: two servers may bind one port as long as neither listens, and the model takes a
        # while to load. Who connects meanwhile waits.
        made.listen()
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    made.set_inheritable(True)
    return made
