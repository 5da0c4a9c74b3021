"""`/v1/embeddings`: vectors of texts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgetok.model import Model
from edgetok.serve.answers import Writer
from edgetok.serve.body import Gone, read_json
from edgetok.serve.exchange import GONE, while_there
from edgetok.serve.failure import Refusal, refusal_of
from edgetok.serve.openai_shared import error_body
from edgetok.serve.prompts import prompt_tokens
from edgetok.serve.protocol import Fields, validated
from edgetok.serve.request import Prompt, prompts_of

_MOST_TEXTS = 2048  # as OpenAI's


class _Body(Fields):
    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["last", "mean"] | None = None  # edgetok's own


class Embeddings:
    """Answers with vectors. An ASGI application."""

    def __init__(self, writer: Writer) -> None:
        """Share models, memory and metrics with the protocols that write."""
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response: JSONResponse | None = None

        async def work(found: _Body) -> None:
            nonlocal response
            response = JSONResponse(await self._answer(found))

        try:
            await while_there(receive, work(validated(_Body, await read_json(scope, receive))))
        except Gone:
            pass
        except Exception as error:
            refusal = refusal_of(error)
            response = JSONResponse(error_body(refusal), refusal.status, refusal.headers)
        if response is not None:
            await response(scope, receive, send)
        status = GONE if response is None else response.status_code
        self._writer.metrics.answered("embeddings", status)

    async def _answer(self, found: _Body) -> dict[str, Any]:
        prompts = prompts_of(found.input, "input")
        if len(prompts) > _MOST_TEXTS:
            raise Refusal(
                400,
                f"input: {len(prompts):,} texts, expected at most {_MOST_TEXTS:,}",
                param="input",
            )
        self._writer.models.find(found.model)
        with self._writer.budget.place() as place:
            async with self._writer.models.using(found.model) as (_, model):
                texts = await asyncio.to_thread(_all_tokens, model, prompts)
                longest = max(map(len, texts))
                if longest > model.context_tokens:
                    raise Refusal(
                        400,
                        f"a text has {longest:,} tokens, expected at most "
                        f"{model.context_tokens:,}; shorten it",
                        param="input",
                        code="context_length_exceeded",
                    )
                await place.borrow(model.backend.new_cache(max(1, longest)).nbytes)
                # One after the other: between two of them a client that went away is noticed.
                vectors = [await asyncio.to_thread(_embed, model, found, ids) for ids in texts]
        data = [
            {"object": "embedding", "index": i, "embedding": _written(vector, found)}
            for i, vector in enumerate(vectors)
        ]
        count = sum(map(len, texts))
        self._writer.metrics.prompt_tokens += count
        return {
            "object": "list",
            "model": found.model,
            "data": data,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }


def _all_tokens(model: Model, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [prompt_tokens(model, prompt) for prompt in prompts]


def _embed(model: Model, found: _Body, tokens: list[int]) -> npt.NDArray[np.float32]:
    size = found.dimensions
    vector = np.asarray(model.embed([tokens], pooling=found.pooling or "last")[0], np.float32)
    if size is None:
        return vector
    if not 1 <= size <= len(vector):
        raise Refusal(
            400,
            f"dimensions: {size:,}, expected 1 to {len(vector):,}",
            param="dimensions",
            code="invalid_value",
        )
    part = vector[:size]
    return np.asarray(part / max(float(np.linalg.norm(part)), 1e-12), np.float32)


def _written(vector: npt.NDArray[np.float32], found: _Body) -> str | list[float]:
    if found.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(x) for x in vector]
