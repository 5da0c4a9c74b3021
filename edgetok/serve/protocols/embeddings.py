"""`/v1/embeddings`: vectors of texts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgetok.model import Model
from edgetok.serve.computed import Computed
from edgetok.serve.failure import Refusal
from edgetok.serve.prompts import prompt_tokens
from edgetok.serve.protocols.protocol import Fields, validated
from edgetok.serve.request import Prompt, prompts_of

_MOST_TEXTS = 2048  # as OpenAI's


class _Body(Fields):
    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["last", "mean"] | None = None  # edgetok's own


class Embeddings(Computed):
    """Answers with vectors."""

    route = "embeddings"

    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return vectors of texts. See `Computed`."""
        found = validated(_Body, body)
        prompts = prompts_of(found.input, "input")
        if len(prompts) > _MOST_TEXTS:
            raise Refusal(
                400,
                f"input: {len(prompts):,} texts, expected at most {_MOST_TEXTS:,}",
                param="input",
            )
        async with self.using(found.model) as work:
            _check_dimensions(found.dimensions, work.model)
            texts = await work.run(_all_tokens, work.model, prompts)
            await work.make_room(texts, "input")
            # One after the other: between two of them a client that went away is noticed.
            vectors = [await work.run(_embed, work.model, found, ids) for ids in texts]
            data = await work.run(_data, vectors, found)
        count = sum(map(len, texts))
        self.writer.metrics.prompt_tokens += count
        return {
            "object": "list",
            "model": found.model,
            "data": data,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }


def _check_dimensions(wanted: int | None, model: Model) -> None:
    spec = model.backend.spec
    if wanted is None or spec is None:  # what has no spec computes no vectors at all
        return
    if not 1 <= wanted <= spec.vector_size:
        raise Refusal(
            400,
            f"dimensions: {wanted:,}, expected 1 to {spec.vector_size:,}",
            param="dimensions",
            code="invalid_value",
        )


def _all_tokens(model: Model, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [prompt_tokens(model, prompt) for prompt in prompts]


def _embed(model: Model, found: _Body, tokens: list[int]) -> npt.NDArray[np.float32]:
    vector = np.asarray(model.embed([tokens], pooling=found.pooling)[0], np.float32)
    part = vector[: found.dimensions]
    if len(part) == len(vector):
        return vector
    return np.asarray(part / max(float(np.linalg.norm(part)), 1e-12), np.float32)


def _data(vectors: Sequence[npt.NDArray[np.float32]], found: _Body) -> list[dict[str, Any]]:
    return [
        {"object": "embedding", "index": i, "embedding": _written(vector, found)}
        for i, vector in enumerate(vectors)
    ]


def _written(vector: npt.NDArray[np.float32], found: _Body) -> str | list[float]:
    if found.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    written: list[float] = vector.tolist()
    return written
