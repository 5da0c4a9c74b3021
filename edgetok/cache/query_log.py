"""The queries that a bounded cache keeps: the latest ones, and their mean and covariance.

`keep_queries` writes each run's last queries, before their rotation, into a ring; `absorb` adds
what is new there to the running moments of the conversation. Nothing is kept for policies that look
at no queries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.cache.policies.view import Floats, QueryStats
from edgetok.models.spec import DecoderSpec

ROWS = 32


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
        L, H, KH, D = spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim
        floats = self._floats = memory.view(np.float32)
        self.rows = ROWS if queries else 0
        ring = L * self.rows * H * D
        self.ring: Floats = floats[:ring].reshape(L, self.rows, KH, H // KH, D)
        self._sum: Floats | None = None
        self._squares: Floats | None = None
        if covariance:
            self._sum = floats[ring : ring + L * H * D].reshape(L, KH, H // KH, D)
            self._squares = floats[ring + L * H * D :].reshape(L, KH, H // KH, D, D)
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
        each = (ROWS if queries else 0) + (1 + spec.head_dim if covariance else 0)
        return 4 * spec.num_layers * spec.num_heads * spec.head_dim * each

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
        if self._sum is not None and self._squares is not None:
            self._sum[:] = 0.0
            self._squares[:] = 0.0
        self.count = self.valid = self.new = 0

    def absorb(self, length_tokens: int) -> None:
        """Add what is new in the ring to the moments; the ring's last token is length - 1."""
        if self._sum is None or self._squares is None or self.new == 0:
            return
        rows = self.ring[:, np.arange(length_tokens - self.new, length_tokens) % ROWS]
        self._sum += rows.sum(axis=1)
        self._squares += np.einsum("lwhgd,lwhge->lhgde", rows, rows, optimize=True)
        self.count += self.new
        self.new = 0

    def stats(self, layer: int, head: int, length_tokens: int, position: int) -> QueryStats:
        """Return the statistics of one KV head; `position` is that of the next token."""
        back = np.arange(-self.valid, 0)
        if self._sum is None or self._squares is None:
            group, size = self.ring.shape[-2:]
            mean = np.zeros((group, size), np.float32)
            covariance = np.zeros((group, size, size), np.float32)
        else:
            mean = self._sum[layer, head] / np.float32(max(1, self.count))
            covariance = self._squares[layer, head] / np.float32(max(1, self.count))
            covariance -= mean[:, :, None] * mean[:, None, :]
        return QueryStats(
            recent=self.ring[layer, (length_tokens + back) % ROWS, head],
            positions=position + back,
            mean=mean,
            covariance=covariance,
        )
