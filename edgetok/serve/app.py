"""The application: routes, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edgetok.serve.answers import Writer
from edgetok.serve.body import Gone, read_json
from edgetok.serve.exchange import GONE, Exchange
from edgetok.serve.failure import Refusal, refusal_of
from edgetok.serve.guard import Guard
from edgetok.serve.models import Served
from edgetok.serve.options import ServeOptions
from edgetok.serve.page import chat_page
from edgetok.serve.prompts import prepare
from edgetok.serve.protocols.chat_completions import ChatCompletions
from edgetok.serve.protocols.completions import Completions
from edgetok.serve.protocols.embeddings import Embeddings
from edgetok.serve.protocols.messages import Messages
from edgetok.serve.protocols.openai_shared import error_body
from edgetok.serve.protocols.protocol import Protocol
from edgetok.serve.protocols.rerank import Rerank
from edgetok.serve.protocols.responses import Responses

_TIDY_S = 5.0  # between two looks for models that nobody uses
_LAST_WORDS_S = 5.0  # at most, for streams to end with an error when the server stops


def application(writer: Writer, options: ServeOptions, *, at_start: str | None = None) -> ASGIApp:
    """Return the server as an ASGI application.

    Args:
        writer: of answers.
        options: of the server.
        at_start: a model that is loaded before the first request.
    """
    pages = _Pages(writer)
    routes = [
        Route("/", pages.chat),
        Route("/health", pages.health),
        Route("/metrics", pages.metrics),
    ]
    posts: dict[str, Any] = {
        "chat/completions": Exchange(ChatCompletions(), writer, "chat"),
        "completions": Exchange(Completions(), writer, "completions"),
        "responses": Exchange(Responses(), writer, "responses"),
        "responses/input_tokens": pages.input_tokens,
        "messages/count_tokens": pages.count_tokens,
        "messages": Exchange(Messages(), writer, "messages"),
        "embeddings": Embeddings(writer),
        "rerank": Rerank(writer),
    }
    # Some clients leave the version out, or have it in their address already.
    for prefix in ("/v1", ""):
        routes += [
            Route(f"{prefix}/models", pages.models),
            Route(f"{prefix}/models/{{name:path}}", pages.model),
            *(Route(f"{prefix}/{path}", does, methods=["POST"]) for path, does in posts.items()),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tidying = asyncio.create_task(_tidy(writer, options.unload_after))
        try:
            if at_start is not None:
                async with writer.models.using(at_start):
                    pass
            yield
        finally:
            tidying.cancel()
            # The process ends with this: what is still answered was cancelled, and says so.
            await writer.last_words(_LAST_WORDS_S)
            await writer.models.close()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Refusal: _own_error, Exception: _own_error},
    )
    return Guard(
        app,
        key=options.key,
        hosts=options.allow_host,
        origins=options.allow_origin,
        refuse=_refused,
    )


class _Pages:
    """Routes that are not a protocol."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def chat(self, request: Request) -> Response:
        return chat_page()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"object": "health", "status": "ok"})

    async def metrics(self, request: Request) -> Response:
        budget = self._writer.budget
        models = self._writer.models.models.values()
        gauges: dict[str, tuple[str, float]] = {
            "running": ("Requests that are answered now.", budget.running),
            "waiting": ("Requests that wait for a place.", budget.waiting),
            "models_loaded": ("Models in memory.", sum(one.model is not None for one in models)),
            "memory_budget_bytes": ("Memory for models and caches.", budget.total_bytes),
            "memory_models_bytes": ("Memory of loaded models.", budget.model_bytes),
            "memory_caches_bytes": ("Memory promised to answers.", budget.cache_bytes),
            "prefixes_too_large": (
                "Prompts of loaded models that did not fit into the prefix cache.",
                sum(one.prefixes_too_large for one in models),
            ),
            "prefixes_unwritten": (
                "Files of the prefix cache that could not be written.",
                sum(one.prefixes_unwritten for one in models),
            ),
        }
        text = self._writer.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """All models at once, in the words of both OpenAI and Anthropic."""
        found = [_model(one) for one in self._writer.models.models.values()]
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]}
        return JSONResponse({"object": "list", "data": found, "has_more": False} | ends)

    async def model(self, request: Request) -> Response:
        return JSONResponse(_model(self._writer.models.find(request.path_params["name"])))

    async def count_tokens(self, request: Request) -> Response:
        """Anthropic's: the tokens that a conversation would be."""
        return await self._counted(request, Messages(), {"max_tokens": 1}, {})

    async def input_tokens(self, request: Request) -> Response:
        """OpenAI's: likewise."""
        return await self._counted(request, Responses(), {}, {"object": "response.input_tokens"})

    async def _counted(
        self, request: Request, protocol: Protocol, filled: dict[str, Any], head: dict[str, Any]
    ) -> Response:
        try:
            call = await read_json(
                request.scope, request.receive, lambda body: protocol.parse(filled | body)
            )
            async with self._writer.models.using(call.request.model) as (_, model):
                prepared = await asyncio.to_thread(prepare, model, call.request)
        except Gone:
            return Response(status_code=GONE)
        except Exception as error:
            refusal = refusal_of(error)
            return JSONResponse(protocol.error(refusal), refusal.status, refusal.headers)
        return JSONResponse(head | {"input_tokens": sum(map(len, prepared.prompts))})


def _model(served: Served) -> dict[str, Any]:
    """One model; what Anthropic's clients look for besides stands below the first four."""
    found: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "edgetok",
        "type": "model",
        "display_name": served.name,
        "created_at": datetime.fromtimestamp(served.created, UTC).isoformat(),
        "loaded": served.model is not None,
    }
    if served.model is not None:
        found["context_length"] = served.model.context_tokens
        found["max_input_tokens"] = served.model.context_tokens
    return found


async def _tidy(writer: Writer, idle_s: int) -> None:
    while idle_s:
        await asyncio.sleep(min(_TIDY_S, idle_s))
        await writer.models.unload_idle(idle_s)


async def _refused(scope: Scope, receive: Receive, send: Send) -> None:
    await _error(scope, scope["refusal"])(scope, receive, send)


async def _http_error(request: Request, error: Any) -> Response:
    """Starlette's own: no such path, or not with this method."""
    refusal = Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return _error(request.scope, refusal, error.headers)


async def _own_error(request: Request, error: Exception) -> Response:
    return _error(request.scope, refusal_of(error))


def _error(scope: Scope, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal before there is a protocol, in the words of the client that asked."""
    anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
    body = Messages().error(refusal) if anthropic else error_body(refusal)
    return JSONResponse(body, refusal.status, headers or refusal.headers)
