"""Rank texts for a query with a model that judges each of them by "yes" or "no".

Such a causal model (Qwen3-Reranker) reads an instruction, the query and one text, and its first
token is the judgement. The score of a text is the share of "yes" among the two:

    score = exp(logit[yes]) / (exp(logit[yes]) + exp(logit[no]))

Source: arXiv:2506.05176, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from edgetok.engine.cached_tokens import CachedTokens
from edgetok.errors import ContextError, OptionError, UnsupportedError
from edgetok.runtime.backend import Backend
from edgetok.text.tokenizer import Tokenizer

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""The instruction that such models assume where none is given."""

# The prompt that they were trained on, word for word.
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def is_ranker(names: Iterable[str]) -> bool:
    """Return whether one of a model's names says that it was trained to rank."""
    return any("rerank" in name.lower() for name in names)


class Ranker:
    """Scores texts with one model. Safe to use from many threads."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, context_tokens: int) -> None:
        """Find the two judgements among the model's tokens.

        Args:
            backend: computes; other threads' steps may come between.
            tokenizer: tokenizer of the model.
            context_tokens: the most tokens of a query and a text together.

        Raises:
            UnsupportedError: the vocabulary has no such tokens.
        """
        self._backend, self._tokenizer = backend, tokenizer
        self._context_tokens = context_tokens
        words = [*("yes", "no"), *("<|im_start|>", "<|im_end|>")]
        ids = [tokenizer.encode(word, special=False) for word in words]
        for word, tokens in zip(words, ids, strict=True):
            if len(tokens) != 1:
                raise UnsupportedError(
                    f"this model ranks no texts: {word!r} is {len(tokens)} of its tokens, expected "
                    "one, as in Qwen3-Reranker"
                )
        self._yes, self._no = ids[0][0], ids[1][0]

    def tokens(self, query: str, document: str, instruction: str | None = None) -> list[int]:
        """Return what the model reads to judge one text."""
        asked = f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {query}\n<Document>: "
        parts = (_BEFORE, asked + document, _AFTER)
        return [i for part in parts for i in self._tokenizer.encode(part, special=False)]

    def cache(self, most_tokens: int) -> CachedTokens:
        """Return a cache for `score`, for up to so many tokens."""
        return CachedTokens(self._backend, most_tokens)

    def check_length(self, tokens: Sequence[int], which: str = "a text") -> None:
        """Refuse a text that does not fit.

        Raises:
            ContextError: query and text do not fit; the message calls the text `which`.
        """
        if len(tokens) > self._context_tokens:
            raise ContextError(
                f"{which} and the query have {len(tokens):,} tokens, expected at most "
                f"{self._context_tokens:,}; shorten them"
            )

    def score(self, tokens: Sequence[int], cache: CachedTokens) -> float:
        """Compute the score of one text, from 0 to 1.

        Args:
            tokens: from `tokens`.
            cache: from `cache`; what it holds of the same query is not computed again.

        Raises:
            ContextError: query and text do not fit.
        """
        self.check_length(tokens)
        held = cache.reuse(tokens)
        logits = self._backend.forward(cache.cache, np.asarray(tokens[held:], np.int32))
        cache.appended(tokens[held:])
        difference = float(logits[self._no]) - float(logits[self._yes])
        return float(1 / (1 + np.exp(np.float64(min(difference, 700)))))


def rank(
    ranker: Ranker, query: str, documents: Sequence[str], instruction: str | None = None
) -> list[float]:
    """Return the scores of texts for a query.

    Args:
        ranker: ranker of the model.
        query: the question or search.
        documents: the texts.
        instruction: purpose of the query; None for a web search.

    Raises:
        ContextError: query and a text do not fit.
        OptionError: there are no texts.
    """
    if not documents:
        raise OptionError("documents is empty, expected at least one text")
    texts = [ranker.tokens(query, document, instruction) for document in documents]
    for i, tokens in enumerate(texts):
        ranker.check_length(tokens, f"document {i + 1}")
    cache = ranker.cache(max(map(len, texts)))
    return [ranker.score(tokens, cache) for tokens in texts]
