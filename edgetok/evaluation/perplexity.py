"""Perplexity over a text, and agreement with the original model on it.

A text is cut into windows that overlap: each token is scored once, with at least `window - stride`
tokens before it where the document has them (the "strided" perplexity of the transformers
documentation). Logits are processed a few rows at a time, so that a large vocabulary does not
fill the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache
from edgetok.errors import OptionError
from edgetok.runtime.backend import Backend
from edgetok.text.tokenizer import Tokenizer

SEPARATOR = "<|endoftext|>"
_ROWS = 64

Ids = npt.NDArray[np.int32]


class Reference(Protocol):
    """The original model."""

    def logits(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Logits [T, V] of tokens [T]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per token.
        tokens: how many were scored.
        kl: mean Kullback-Leibler divergence of the original from this model, in nats.
        top1_agreement: share of tokens where both have the same most likely token.
        reference_perplexity: perplexity of the original.
    """

    perplexity: float
    tokens: int
    kl: float | None = None
    top1_agreement: float | None = None
    reference_perplexity: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are run together.

    Attributes:
        ids: [T].
        first: predictions before this row were scored in an earlier window.
    """

    ids: Ids
    first: int


def windows(
    documents: Iterable[list[int]], window_tokens: int, stride_tokens: int, max_tokens: int
) -> Iterator[Window]:
    """Cut documents into overlapping windows until `max_tokens` predictions are reached.

    Raises:
        OptionError: the stride is longer than the window, or a number is too small.
    """
    if window_tokens < 2 or not 1 <= stride_tokens < window_tokens or max_tokens < 1:
        raise OptionError(
            f"window {window_tokens}, stride {stride_tokens}, {max_tokens} tokens: expected a "
            "stride of at least 1 and less than the window, and at least 1 token"
        )
    left = max_tokens
    for tokens in documents:
        ids = np.asarray(tokens, np.int32)
        scored = 0  # predictions made: the first is of token 1
        begin = 0
        while scored < len(ids) - 1 and left > 0:
            end = min(begin + window_tokens, len(ids), scored + 1 + left)
            yield Window(ids[begin:end], scored - begin)
            left -= end - 1 - scored
            scored = end - 1
            begin += stride_tokens
        if left <= 0:
            return


def documents(text: str, tokenizer: Tokenizer, separator: str = SEPARATOR) -> Iterator[list[int]]:
    """Tokens of each part of a text between separators, as the tokenizer begins a text."""
    for part in text.split(separator) if separator else [text]:
        if part.strip():
            yield tokenizer.encode(part.strip("\n") if separator else part)


def evaluate(
    backend: Backend,
    cut: Iterable[Window],
    reference: Reference | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score windows.

    Args:
        backend: the model.
        cut: from `windows`.
        reference: the original, for KL and agreement.
        progress: called with the number of tokens scored, window by window.

    Raises:
        OptionError: there is nothing to score, or the original has another vocabulary.
    """
    losses: list[float] = []
    reference_losses: list[float] = []
    divergences: list[float] = []
    same = tokens = 0
    for window in cut:
        cache = backend.new_cache(len(window.ids))
        theirs = None if reference is None else reference.logits(window.ids)
        before = tokens
        for start in range(0, len(window.ids) - 1, _ROWS):
            rows = window.ids[start : min(start + _ROWS, len(window.ids) - 1)]
            ours = backend.forward(cache, rows, all_logits=True)
            skip = max(0, window.first - start)
            if skip >= len(rows):
                continue
            targets = window.ids[start + skip + 1 : start + len(rows) + 1]
            q = log_softmax(ours[skip:])
            places = np.arange(len(targets))
            losses.append(-float(q[places, targets].sum()))
            tokens += len(targets)
            if theirs is not None:
                part = theirs[start + skip : start + len(rows)]
                if part.shape[1] < q.shape[1]:
                    raise OptionError(
                        f"the reference knows {part.shape[1]} tokens, this model {q.shape[1]}: it "
                        "is not the checkpoint that was converted"
                    )
                p = log_softmax(part[:, : q.shape[1]])
                reference_losses.append(-float(p[places, targets].sum()))
                divergences.append(float((np.exp(p) * (p - q)).sum()))
                same += int((p.argmax(1) == q.argmax(1)).sum())
        if progress is not None:
            progress(tokens - before)
    if tokens == 0:
        raise OptionError("the text is too short: there is no token to predict")
    compared = reference is not None
    return Evaluation(
        perplexity=perplexity_of(losses, tokens),
        tokens=tokens,
        kl=math.fsum(divergences) / tokens if compared else None,
        top1_agreement=same / tokens if compared else None,
        reference_perplexity=perplexity_of(reference_losses, tokens) if compared else None,
    )


def running_losses(
    backend: Backend, cache: KVCache, tokens: Ids
) -> Iterator[npt.NDArray[np.float64]]:
    """-log p of tokens 1.. of a running text, some at a time, in a cache that is not cleared.

    A cache that evicts nothing gets as much of the text at once as it holds.
    """
    for start in range(0, len(tokens) - 1, _ROWS):
        rows = tokens[start : min(start + _ROWS, len(tokens) - 1)]
        if cache.length_tokens + len(rows) > cache.capacity_tokens:
            cache.clear()
        logits = backend.forward(cache, rows, all_logits=True)
        yield target_losses(logits, tokens[start + 1 : start + 1 + len(rows)])


def target_losses(logits: npt.NDArray[np.float32], targets: Ids) -> npt.NDArray[np.float64]:
    """-log(softmax) of one token of each row: [T, V], [T] -> [T]; sums in float64."""
    most = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - most).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets]
    return np.asarray(np.log(sums) + most[:, 0] - chosen, np.float64)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """log(softmax) over the last axis [..., V], in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def perplexity_of(losses: Iterable[float], tokens: int) -> float:
    """Return exp of the mean of losses; infinite where it is beyond float64."""
    mean = math.fsum(losses) / tokens
    return math.exp(mean) if mean < 700 else math.inf
