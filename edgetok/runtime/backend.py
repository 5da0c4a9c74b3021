"""The interface between an engine that computes logits and everything above it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgetok.models.spec import DecoderSpec

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


class KVCache(Protocol):
    """What a backend remembers of one sequence. Made by `Backend.new_cache`; used by one thread.

    A cache holds slots; a slot holds one token's key and value for one layer and KV head, and knows
    its token's position. `length_tokens` counts the tokens seen; a bounded cache may hold fewer.
    """

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far: the position of the next one."""

    @property
    def capacity_tokens(self) -> int:
        """How many tokens can be seen before `ContextError`."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all layers."""

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from position `length_tokens` on.

        Returns:
            False, with nothing changed, where that is not possible because a sliding window has
            already overwritten older tokens; the caller then clears and computes again.
        """

    def clear(self) -> None:
        """Forget everything."""


class Backend(Protocol):
    """Computes logits for one artefact. Safe to call from many threads; calls take turns."""

    @property
    def name(self) -> str:
        """One of "cpu", "cuda" and "onnxruntime"."""

    @property
    def spec(self) -> DecoderSpec | None:
        """The decoder's description; None where only a graph is known (exported by optimum)."""

    @property
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    def context_tokens(self) -> int:
        """The trained context length."""

    def new_cache(self, capacity_tokens: int) -> KVCache:
        """Allocate an empty cache, all its bytes at once."""

    def forward(
        self,
        cache: KVCache,
        tokens: Tokens,
        *,
        all_logits: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Logits:
        """Append `tokens` [T] to the cache and compute logits.

        One token is a decode step; more are computed in blocks, `should_stop` being asked between
        blocks. When it says yes `Interrupted` is raised; the cache then holds the blocks done.

        Returns:
            [vocab_size] of the last token, or [T, vocab_size] with `all_logits`. The array may be
            reused by the next call.

        Raises:
            ContextError: the tokens do not fit; nothing was changed.
        """

    def close(self) -> None:
        """Stop threads and release the mapping. A second call does nothing."""


GpuCompute = Literal["float16", "float32"]
MOST_CANDIDATES = 64  # that a backend which chooses tokens itself draws among


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How one token is chosen where its logits are.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: among so many, 1..MOST_CANDIDATES; of no meaning where the temperature is 0.
        top_p, min_p: as in `SamplingOptions`.
        share: of what may be drawn, in rising order of ids, that comes before the token; 0..1.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    share: float


@runtime_checkable
class SamplingBackend(Backend, Protocol):
    """A backend that can choose the next token itself, so that logits need not travel."""

    def forward_sampled(
        self,
        cache: KVCache,
        tokens: Tokens,
        draw: Draw,
        *,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """As `forward`, but the next token in place of logits."""


class Interrupted(Exception):
    """`should_stop` said yes in the middle of a prefill."""
