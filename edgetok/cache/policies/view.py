"""The view of one KV head that a policy scores when a bounded cache has to evict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Rotate = Callable[[Floats, npt.NDArray[np.int64]], Floats]

_UNSEEN = np.float32(-1e30)


@dataclass(frozen=True)
class QueryStats:
    """Statistics of the queries of one KV head's G query heads, before their rotation.

    Attributes:
        recent: [W, G, D], the latest ones, oldest first; none for policies that do not ask.
        positions: [W], theirs.
        mean: [G, D] over the conversation; 0 for policies that do not ask for it.
        covariance: [G, D, D] likewise.
    """

    recent: Floats
    positions: npt.NDArray[np.int64]
    mean: Floats
    covariance: Floats


@dataclass(frozen=True)
class HeadView:
    """One KV head's tokens, oldest first; n of them.

    Attributes:
        read_keys: gives keys [n, D] as they were rotated.
        read_values: gives values [n, D].
        positions: int32 [n].
        tokens: int32 [n], their places in the conversation.
        mass: [n], attention that each got so far, added up over queries and query heads.
        stats: moments of the queries.
        rotate: rotates vectors [..., D] to positions that broadcast against [...].
        mean_rotation: [D, D]: what a row vector is multiplied by to be rotated to each of some
            positions and averaged.
        scale: scale of products of queries and keys.
        softcap: softcap of scaled products; 0 is none.
    """

    read_keys: Callable[[], Floats]
    read_values: Callable[[], Floats]
    positions: Ints
    tokens: Ints
    mass: Floats
    stats: QueryStats
    rotate: Rotate
    mean_rotation: Callable[[npt.NDArray[np.int64]], Floats]
    scale: float
    softcap: float

    @cached_property
    def keys(self) -> Floats:
        """[n, D] float32."""
        return self.read_keys()

    @cached_property
    def value_norms(self) -> Floats:
        """[n], Euclidean norms of the values."""
        return np.asarray(np.linalg.norm(self.read_values(), axis=1), np.float32)

    @cached_property
    def recent_attention(self) -> Floats:
        """Softmax weights of the latest queries, [W, G, n]; a token sees none after it."""
        stats = self.stats
        return self.attention(self.rotate(stats.recent, stats.positions[:, None]), stats.positions)

    def attention(self, queries: Floats, positions: npt.NDArray[np.int64]) -> Floats:
        """Softmax weights of rotated queries [W, G, D] at positions [W]: [W, G, n]."""
        W, G, D = queries.shape
        logits = (queries.reshape(W * G, D) @ self.keys.T).reshape(W, G, -1)
        logits *= np.float32(self.scale)
        if self.softcap:
            logits = np.tanh(logits / np.float32(self.softcap)) * np.float32(self.softcap)
        logits[np.broadcast_to(self.positions > positions[:, None, None], logits.shape)] = _UNSEEN
        logits -= logits.max(axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=-1, keepdims=True)
        return logits
