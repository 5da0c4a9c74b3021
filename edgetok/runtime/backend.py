"""The interface between an engine that computes logits and everything above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.cache.limits import CacheLimits
from edgetok.cache.protocol import KVCache
from edgetok.models.spec import DecoderSpec
from edgetok.sampling.device import Draw
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import TokenChooser

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a step.

    Attributes:
        cache: the sequence's cache, made by the backend that steps; in one part of a step only.
        tokens: int32 [T], 0 < T <= `cache.block_tokens`: appended to the cache, one row each.
        logits: how many of the last rows' logits are wanted, 0..T.
        adapter: reserved for low-rank adapters; no backend has any.
    """

    cache: KVCache
    tokens: Tokens
    logits: int
    adapter: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The capabilities of a backend as it was loaded.

    Attributes:
        together: whether parts of a step are computed together, so that a step of several rows
            costs less than a step for each; else one after the other.
        step_rows: most rows of a step, all parts together.
        evicts: whether it has bounded caches: `new_bounded_cache`.
        same_bits: whether a row's logits do not depend on the other rows of its step, nor on how
            many there are.
        samples: whether it chooses tokens where the logits are: `step_sampled`.
        threads: how many threads compute; None where the backend does not say.
        snapshots: whether its caches go back to where steps ended, and nowhere else.
    """

    together: bool
    step_rows: int
    evicts: bool
    samples: bool
    same_bits: bool = False
    threads: int | None = None
    snapshots: bool = False


class Backend(Protocol):
    """Computes logits for one artefact. Safe to call from many threads; calls take turns.

    What does not differ between backends is in `edgetok.runtime.base.BaseBackend`.
    """

    @property
    def name(self) -> str:
        """One of "cpu", "cuda" and "onnxruntime"."""

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities."""

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

    def cache_bytes(self, context_tokens: int, limits: CacheLimits | None = None) -> int:
        """Return `nbytes` of the cache that `new_cache`, or `new_bounded_cache` with limits, makes.

        Raises:
            OptionError, UnsupportedError: as they do.
        """

    def new_bounded_cache(self, context_tokens: int, limits: CacheLimits) -> KVCache:
        """Allocate an empty cache that evicts, all its bytes at once.

        Raises:
            OptionError: the limits are too tight, or the policy is unknown.
            UnsupportedError: `capabilities.evicts` is False.
        """

    def step(self, parts: Sequence[Part]) -> list[Logits]:
        """Append each part's tokens to its cache and compute the logits it asks for.

        Args:
            parts: at most `capabilities.step_rows` rows together.

        Returns:
            float32 [part.logits, vocab_size] for each part. An array may be reused by the next step
            of its cache.

        Raises:
            ContextError: a part's tokens do not fit; nothing was changed.
            OptionError: a token id is not below the vocabulary's size; likewise.
            ShapeError: a part has no tokens or too many, or a cache of another backend; likewise.
        """

    def step_sampled(self, parts: Sequence[Part], draws: Sequence[Draw]) -> list[int]:
        """Append each part's tokens to its cache and choose the token after its last row.

        Args:
            parts: as for `step`; their `logits` have no meaning here.
            draws: how to choose, for each part.

        Raises:
            ArtefactError: logits are not finite.
            UnsupportedError: `capabilities.samples` is False.
        """

    def embed(self, tokens: Tokens, *, mean: bool = False) -> npt.NDArray[np.float32]:
        """Compute a vector for a whole text: what the output head would get, times `vector_sizes`.

        Args:
            tokens: the text's ids.
            mean: the mean over all tokens instead of the last one's.

        Returns:
            [spec.vector_size], a new array.

        Raises:
            ContextError: more tokens than the model was trained for.
            OptionError: a token id is not below the vocabulary's size.
            ShapeError: no tokens, or not one row of integers.
            UnsupportedError: this backend computes logits alone.
        """

    def chooser(self, options: SamplingOptions) -> TokenChooser | None:
        """Return a fast chooser of tokens from this backend's logits; None leaves it to NumPy."""

    def forward(
        self,
        cache: KVCache,
        tokens: Tokens,
        *,
        all_logits: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Logits:
        """Append `tokens` [T] to the cache and compute logits: a loop over `step`.

        `should_stop` is asked between two steps. When it says yes `Interrupted` is raised; the
        cache then holds what the steps before appended.

        Returns:
            [vocab_size] of the last token, or [T, vocab_size] with `all_logits`. The array may be
            reused by the next call.

        Raises:
            ContextError: the tokens do not fit; nothing was changed.
        """

    def close(self) -> None:
        """Stop threads and release the mapping. A second call does nothing."""


GpuCompute = Literal["float16", "float32"]


class Interrupted(Exception):
    """`should_stop` said yes in the middle of a prefill."""
