"""The interface between an engine that computes logits and everything above it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgetok.cache.protocol import KVCache
from edgetok.models.spec import DecoderSpec
from edgetok.sampling.device import Draw

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


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
