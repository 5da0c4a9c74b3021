"""`/v1/rerank`: texts by how well they answer a query, as Jina's and Cohere's clients ask.

Only models that were trained for it can: see `edgetok.ranking`.
"""

from __future__ import annotations

from typing import Any

from edgetok.errors import UnsupportedError
from edgetok.model import Model
from edgetok.ranking import Ranker, is_ranker
from edgetok.serve.computed import Computed
from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.protocols.protocol import Fields, Part, validated

_MOST_TEXTS = 2048


class _Document(Part):
    type: str = "text"


class _Body(Fields):
    model: str
    query: str
    documents: list[str | _Document]
    top_n: int | None = None
    return_documents: bool | None = None
    instruction: str | None = None  # edgetok's own: what the query is for


class Rerank(Computed):
    """Answers with scores from 0 to 1, the best text first."""

    route = "rerank"

    async def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return texts by their scores. See `Computed`."""
        found = validated(_Body, body)
        documents = _texts(found)
        async with self.using(found.model) as work:
            ranker = _ranker(work.served, work.model)
            texts = await work.run(_all_tokens, ranker, found, documents)
            await work.make_room(texts, "documents")
            cache = ranker.cache(max(map(len, texts)))
            # One after the other: between two of them a client that went away is noticed.
            scores = [await work.run(ranker.score, ids, cache) for ids in texts]
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: found.top_n]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in best]
        if found.return_documents:
            for result in results:
                result["document"] = {"text": documents[result["index"]]}
        count = sum(map(len, texts))
        self.writer.metrics.prompt_tokens += count
        return {
            "object": "list",
            "model": found.model,
            "results": results,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }


def _texts(found: _Body) -> list[str]:
    if not 1 <= len(found.documents) <= _MOST_TEXTS:
        raise Refusal(
            400,
            f"documents: {len(found.documents):,} texts, expected 1 to {_MOST_TEXTS:,}",
            param="documents",
            code="invalid_value",
        )
    if found.top_n is not None and found.top_n < 1:
        raise Refusal(
            400, f"top_n: {found.top_n:,}, expected at least 1", param="top_n", code="invalid_value"
        )
    texts = []
    for i, one in enumerate(found.documents):
        text = one if isinstance(one, str) else one.text
        if text is None:
            raise Refusal(
                400,
                f"documents.{i}: has no text; this server ranks texts alone",
                param=f"documents.{i}",
                code="invalid_value",
            )
        texts.append(text)
    return texts


def _ranker(served: Served, model: Model) -> Ranker:
    message = f"{served.name} was not trained to rank texts; use one such as Qwen3-Reranker"
    if is_ranker((served.name, *model.names)):
        try:
            return Ranker(model.backend, model.tokenizer, model.context_tokens)
        except UnsupportedError as error:
            message = f"{served.name}: {error}"
    raise Refusal(400, message, param="model", code="unsupported_model")


def _all_tokens(ranker: Ranker, found: _Body, documents: list[str]) -> list[list[int]]:
    return [ranker.tokens(found.query, text, found.instruction) for text in documents]
