"""The queries that a bounded cache keeps: the latest ones, and their mean and covariance.

`keep_queries` writes each run's last queries, before their rotation, into a ring; `absorb` adds
what is new there to the running moments of the conversation. Nothing is kept for policies that look
at no queries.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgetok.cache.policies.view import Floats, QueryStats
from edgetok.models.spec import DecoderSpec

ROWS = 32


def query_dim(spec: DecoderSpec) -> int:
    """Dims for which a layer has room in the ring, of each head: a multiple of every layer's."""
    return math.lcm(spec.head_dim, *(spec.kv_sizes(i)[1] for i in range(spec.num_layers)))


class QueryLog:
    """Queries of all layers; float32 arrays inside memory that its owner allocated."""

    def __init__(
        self,
        memory: npt.NDArray[np.uint8],
        spec: DecoderSpec,
        covariance: bool,
        queries: bool = True,
    ) -> None:
        """Lay out; `memory` is uint8 [`nbytes`], zeroed."""
        L, H = spec.num_layers, spec.num_heads
        floats = self._floats = memory.view(np.float32)
        self.rows = ROWS if queries else 0
        room = self.rows * H * query_dim(spec)  # of a layer
        at = L * room
        self.ring: Floats = floats[:at]  # all layers', as `keep_queries` writes it
        self._rings: list[Floats] = []  # [rows, KH, G, D] of each layer
        self._sums: list[Floats] = []  # [KH, G, D]
        self._squares: list[Floats] = []  # [KH, G, D, D]
        for layer in range(L):
            KH, D = spec.kv_sizes(layer)
            heads = (KH, H // KH, D)
            mine = self.ring[layer * room : layer * room + self.rows * H * D]
            self._rings.append(mine.reshape(self.rows, *heads))
            if covariance:
                self._sums.append(floats[at : at + H * D].reshape(heads))
                at += H * D
                self._squares.append(floats[at : at + H * D * D].reshape(*heads, D))
                at += H * D * D
        self.count = 0  # queries in the sums
        self.valid = 0  # latest tokens whose queries the ring holds
        self.new = 0  # of them, those that are not in the sums yet

    @property
    def nbytes_used(self) -> int:
        """Bytes of `state`."""
        return 4 * int(self._floats.shape[0])

    def state(self) -> Floats:
        """Ring and sums, float32 on the host."""
        return np.array(self._floats)

    def restore(self, numbers: Floats, counts: tuple[int, int, int]) -> None:
        """Become what `state` and the counters were; they were checked."""
        self._floats[:] = numbers
        self.count, self.valid, self.new = counts

    def copy_from(self, other: QueryLog) -> None:
        """Become what another log is."""
        self._floats[:] = other._floats
        self.count, self.valid, self.new = other.count, other.valid, other.new

    @staticmethod
    def nbytes(spec: DecoderSpec, covariance: bool, queries: bool = True) -> int:
        """Bytes of the ring and the sums."""
        total = spec.num_layers * (ROWS if queries else 0) * query_dim(spec)
        if covariance:
            dims = (spec.kv_sizes(layer)[1] for layer in range(spec.num_layers))
            total += sum(D + D * D for D in dims)
        return 4 * spec.num_heads * total

    def advance(self, tokens: int) -> None:
        """Count tokens whose queries were kept."""
        self.valid = min(self.rows, self.valid + tokens)
        self.new = min(self.rows, self.new + tokens)

    def forget(self, tokens: int) -> None:
        """The last so many tokens are taken back."""
        self.valid = max(0, self.valid - tokens)
        self.new = max(0, self.new - tokens)

    def clear(self) -> None:
        """Forget everything."""
        for kept in (*self._sums, *self._squares):
            kept[:] = 0.0
        self.count = self.valid = self.new = 0

    def absorb(self, length_tokens: int) -> None:
        """Add what is new in the ring to the moments; the ring's last token is length - 1."""
        if not self._sums or self.new == 0:
            return
        new = np.arange(length_tokens - self.new, length_tokens) % ROWS
        for ring, total, squares in zip(self._rings, self._sums, self._squares, strict=True):
            rows = ring[new]
            total += rows.sum(axis=0)
            squares += np.einsum("whgd,whge->hgde", rows, rows, optimize=True)
        self.count += self.new
        self.new = 0

    def stats(self, layer: int, head: int, length_tokens: int, position: int) -> QueryStats:
        """Return the statistics of one KV head; `position` is that of the next token."""
        back = np.arange(-self.valid, 0)
        ring = self._rings[layer]
        if not self._sums:
            group, size = ring.shape[-2:]
            mean = np.zeros((group, size), np.float32)
            covariance = np.zeros((group, size, size), np.float32)
        else:
            mean = self._sums[layer][head] / np.float32(max(1, self.count))
            covariance = self._squares[layer][head] / np.float32(max(1, self.count))
            covariance -= mean[:, :, None] * mean[:, None, :]
        return QueryStats(
            recent=ring[(length_tokens + back) % ROWS, head],
            positions=position + back,
            mean=mean,
            covariance=covariance,
        )
