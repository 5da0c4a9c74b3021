"""Log-probabilities of tokens: the logarithm of softmax over a row of logits.

They are the model's own: before penalties, temperature and the other sampling options. So they do
not depend on how a token was chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Logprobs(NamedTuple):
    """Log-probabilities at one position.

    Attributes:
        logprob: natural logarithm of the probability of the token that stands there.
        top: the most likely tokens with theirs, most likely first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs(logits: npt.NDArray[np.float32], token: int, top: int) -> Logprobs:
    """Return log softmax(logits)[token] and the `top` largest; of equals, lower ids come first.

    Args:
        logits: [vocab_size], finite.
        token: the token that stands there.
        top: number of alternatives, from 0.
    """
    total = _log_total(logits)
    count = min(top, logits.size)
    ids: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    if count:
        bar = np.partition(logits, logits.size - count)[logits.size - count]
        ids = np.flatnonzero(logits >= bar)
        ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    pairs = tuple((int(i), float(logits[i]) - total) for i in ids)
    return Logprobs(float(logits[token]) - total, pairs)


def _log_total(logits: npt.NDArray[np.float32]) -> float:
    """log(sum(exp(logits))) in float64."""
    largest = float(logits.max())
    return largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))
