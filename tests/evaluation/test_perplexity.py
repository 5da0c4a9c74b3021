"""Perplexity, KL and windows against a plain computation in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgetok.errors import OptionError
from edgetok.evaluation.perplexity import (
    Window,
    documents,
    evaluate,
    log_softmax,
    target_losses,
    windows,
)

V = 11


class Bigram:
    """A backend whose logits depend on the last two tokens: position errors show."""

    name = "fake"
    spec = None
    vocab_size = V
    context_tokens = 1000

    def __init__(self, seed: int) -> None:
        self.table = np.random.default_rng(seed).normal(0, 2, (V, V, V)).astype(np.float32)

    def row(self, tokens: list[int]) -> np.ndarray:
        return self.table[tokens[-2] if len(tokens) > 1 else 0, tokens[-1]]

    def new_cache(self, capacity_tokens: int) -> Any:
        return []

    def forward(self, cache: Any, tokens: Any, *, all_logits: bool = False, **_: Any) -> Any:
        rows = []
        for token in tokens.tolist():
            cache.append(token)
            rows.append(self.row(cache))
        return np.stack(rows) if all_logits else rows[-1]

    def logits(self, ids: Any) -> Any:
        return self.forward([], ids, all_logits=True)

    def close(self) -> None: ...


def plain(model: Bigram, other: Bigram | None, cut: list[Window]) -> dict[str, float]:
    """The same, one token at a time."""

    def distribution(m: Bigram, tokens: list[int]) -> np.ndarray:
        weights = np.exp(m.row(tokens).astype(np.float64))
        return weights / weights.sum()

    losses, kls, same = [], [], []
    for window in cut:
        ids = window.ids.tolist()
        for i in range(window.first, len(ids) - 1):
            q = distribution(model, ids[: i + 1])
            losses.append(-math.log(q[ids[i + 1]]))
            if other is not None:
                p = distribution(other, ids[: i + 1])
                kls.append(float((p * np.log(p / q)).sum()))
                same.append(int(p.argmax()) == int(q.argmax()))
    return {
        "perplexity": math.exp(sum(losses) / len(losses)),
        "tokens": len(losses),
        "kl": sum(kls) / max(len(kls), 1),
        "top1": sum(same) / max(len(same), 1),
    }


@pytest.mark.parametrize("length", [2, 63, 64, 65, 66, 300])
@pytest.mark.parametrize(("window", "stride"), [(512, 256), (100, 37), (2, 1), (66, 65)])
def test_as_computed_one_by_one(length: int, window: int, stride: int) -> None:
    rng = np.random.default_rng(length)
    docs = [rng.integers(0, V, n).tolist() for n in (length, 5, 1, 40)]
    cut = list(windows(docs, window, stride, 10_000))
    model, other = Bigram(1), Bigram(2)
    result = evaluate(model, cut, other)  # type: ignore[arg-type]
    expected = plain(model, other, cut)
    assert result.tokens == expected["tokens"] == sum(len(d) - 1 for d in docs)
    assert result.perplexity == pytest.approx(expected["perplexity"], rel=1e-12)
    assert result.kl == pytest.approx(expected["kl"], rel=1e-9)
    assert result.top1_agreement == pytest.approx(expected["top1"])
    assert result.reference_perplexity is not None


@pytest.mark.parametrize(("window", "stride"), [(10, 5), (10, 9), (10, 1), (3, 2)])
@pytest.mark.parametrize("most", [1, 7, 20, 1000])
def test_each_token_is_scored_once(window: int, stride: int, most: int) -> None:
    doc = list(range(50))
    scored: list[int] = []
    for cut in windows([doc], window, stride, most):
        assert len(cut.ids) <= window
        scored += cut.ids[cut.first + 1 :].tolist()
        if cut.ids[0] > 0 and most == 1000 and cut.ids[-1] < 49:
            assert cut.first >= window - stride - 1
    assert scored == list(range(1, min(49, most) + 1))


def test_same_model_has_no_divergence() -> None:
    cut = list(windows([list(range(V)) * 5], 30, 15, 1000))
    result = evaluate(Bigram(1), cut, Bigram(1))  # type: ignore[arg-type]
    assert result.kl == 0
    assert result.top1_agreement == 1
    assert result.perplexity == result.reference_perplexity


def test_without_a_reference() -> None:
    told: list[int] = []
    result = evaluate(Bigram(1), windows([[1, 2, 3]], 8, 4, 10), progress=told.append)  # type: ignore[arg-type]
    assert (result.kl, result.top1_agreement, result.tokens, told) == (None, None, 2, [2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: list(windows([[1, 2]], 1, 1, 5)),
        lambda: list(windows([[1, 2]], 8, 8, 5)),
        lambda: list(windows([[1, 2]], 8, 0, 5)),
        lambda: list(windows([[1, 2]], 8, 4, 0)),
        lambda: evaluate(Bigram(1), windows([[1]], 8, 4, 5)),  # type: ignore[arg-type]
    ],
)
def test_bad_options(call: Callable[[], Any]) -> None:
    with pytest.raises(OptionError):
        call()


def test_reference_of_another_vocabulary() -> None:
    class Narrow(Bigram):
        def logits(self, ids: Any) -> Any:
            return super().logits(ids)[:, :5]

    with pytest.raises(OptionError, match="the reference knows 5 tokens, this model 11"):
        evaluate(Bigram(1), windows([[1, 2]], 8, 4, 5), Narrow(1))  # type: ignore[arg-type]


def test_documents_are_split() -> None:
    class Words:
        def encode(self, text: str) -> list[str]:
            return text.split()

    result = list(documents("a b\n<|endoftext|>\n\n<|endoftext|>\nc", Words()))  # type: ignore[arg-type]
    assert result == [["a", "b"], ["c"]]


def test_log_softmax_of_large_logits() -> None:
    rows = np.array([[1000.0, 0.0, -1000.0], [5.0, 5.0, 5.0]], np.float32)
    result = log_softmax(rows)
    np.testing.assert_allclose(np.exp(result).sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(result[1], math.log(1 / 3), rtol=1e-12)


def test_target_losses_are_log_softmax() -> None:
    rows = np.random.default_rng(0).normal(0, 20, (5, 300)).astype(np.float32)
    targets = np.array([0, 299, 7, 7, 150], np.int32)
    expected = -log_softmax(rows)[np.arange(5), targets]
    np.testing.assert_allclose(target_losses(rows, targets), expected, rtol=1e-5, atol=1e-6)
