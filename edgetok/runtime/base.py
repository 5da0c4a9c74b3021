"""Shared parts of all backends: whole prompts as loops over steps, and refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.cache.limits import CacheLimits
from edgetok.cache.protocol import KVCache
from edgetok.cache.slot_cache import SlotCache
from edgetok.errors import ArtefactError, ShapeError, UnsupportedError
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Backend, Logits, Part, Tokens
from edgetok.runtime.token_blocks import blocks, checked_tokens, foreign_cache
from edgetok.sampling.device import Draw
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import TokenChooser


def check_writes(spec: DecoderSpec | None) -> None:
    """Refuse logits of a model that sees what is behind a token.

    Raises:
        UnsupportedError: it computes vectors alone.
    """
    if spec is not None and spec.both_sides:
        raise UnsupportedError(
            f"this {spec.family} model was made for vectors of texts and writes none; use "
            "edgetok embed, model.embed or /v1/embeddings, or another model"
        )


class BaseBackend:
    """Methods of `Backend` that follow from `step` and `capabilities`."""

    def forward(
        self: Backend,
        cache: KVCache,
        tokens: Tokens,
        *,
        all_logits: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Logits:
        """Append tokens to the cache and compute logits. See `Backend.forward`.

        Raises:
            ContextError: the tokens do not fit; nothing was changed.
            OptionError: a token id is not below the vocabulary's size.
            ShapeError: no tokens, not one row of integers, or a cache of another backend.
        """
        ids = checked_tokens(tokens, cache, self.vocab_size)
        cache.reserve(ids.size)
        every = np.empty((ids.size, self.vocab_size), np.float32) if all_logits else None
        found: Logits
        for start, chunk, last in blocks(ids, _step_tokens(self, cache), should_stop):
            wanted = int(last) if every is None else chunk.size
            (found,) = self.step([Part(cache, chunk, wanted)])
            if every is not None:
                every[start : start + chunk.size] = found
        return found[0] if every is None else every

    def embed(self: Backend, tokens: Tokens, *, mean: bool = False) -> npt.NDArray[np.float32]:
        """Refuse: this backend computes logits alone.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"the {self.name} backend computes no embeddings of texts; use --device cpu"
        )

    def chooser(self, options: SamplingOptions) -> TokenChooser | None:
        """None: NumPy chooses."""
        return None

    def cache_bytes(self: Backend, context_tokens: int, limits: CacheLimits | None = None) -> int:
        """Ask a cache, which takes no memory before it is used. See `Backend.cache_bytes`."""
        if limits is None:
            return self.new_cache(context_tokens).nbytes
        return self.new_bounded_cache(context_tokens, limits).nbytes

    def new_bounded_cache(self: Backend, context_tokens: int, limits: CacheLimits) -> KVCache:
        """Refuse: this backend has no cache that evicts.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"the {self.name} backend has no cache that evicts; use --device cpu, or "
            "--kv-policy none"
        )

    def step_sampled(self: Backend, parts: Sequence[Part], draws: Sequence[Draw]) -> list[int]:
        """Refuse: this backend gives logits and leaves the choice to the caller.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(f"the {self.name} backend does not choose tokens itself")


class SpecBackend(BaseBackend):
    """Base of the backends that run a decoder by its spec, with edgetok's own caches."""

    _cache_kind: str
    _spec: DecoderSpec  # of the layers that are computed here
    _kv_bits: int
    _block_tokens: int

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._spec.vocab_size

    @property
    def context_tokens(self) -> int:
        """The trained context length."""
        return self._spec.context_tokens

    def _checked(self, parts: Sequence[Part]) -> list[tuple[Part, SlotCache[Any]]]:
        """The parts of a step with their caches.

        Raises:
            ContextError, OptionError, ShapeError: as `checked_parts`.
            ShapeError: a cache of another backend.
        """
        found = []
        for part in checked_parts(parts, self.vocab_size, self._block_tokens):
            cache = part.cache
            if not isinstance(cache, SlotCache) or not cache.serves(
                self._spec, self._kv_bits, self._cache_kind
            ):
                raise foreign_cache(cache)
            found.append((part, cache))
        return found


def with_spec(artefact: Artefact | str | os.PathLike[str]) -> tuple[Artefact, DecoderSpec]:
    """An artefact, opened if it was not, and its decoder.

    Raises:
        ArtefactError: the folder is damaged or has no spec.
    """
    if not isinstance(artefact, Artefact):
        artefact = open_artefact(artefact)
    if artefact.spec is None:
        raise ArtefactError(
            f"{artefact.folder}: the graph has no edgetok spec; run it with the onnxruntime backend"
        )
    return artefact, artefact.spec


def forward_sampled(
    backend: Backend,
    cache: KVCache,
    tokens: Tokens,
    draw: Draw,
) -> int:
    """Append tokens and let the backend choose the next one: `forward` without logits.

    Raises:
        ArtefactError: the logits are not finite.
        ContextError: the tokens do not fit; nothing was changed.
        UnsupportedError: the backend does not choose.
    """
    ids = checked_tokens(tokens, cache, backend.vocab_size)
    cache.reserve(ids.size)
    chosen = -1
    for _, chunk, last in blocks(ids, _step_tokens(backend, cache), None):
        if last:
            (chosen,) = backend.step_sampled([Part(cache, chunk, 0)], [draw])
        else:
            backend.step([Part(cache, chunk, 0)])
    return chosen


def checked_parts(parts: Sequence[Part], vocab_size: int, step_rows: int) -> list[Part]:
    """The parts of a step, their tokens as int32.

    Raises:
        ContextError: a part's tokens do not fit into its cache.
        OptionError: a token id is not below the vocabulary's size.
        ShapeError: too many rows, a part without tokens, or two parts of one cache.
    """
    found, rows = [], 0
    for part in parts:
        ids = checked_tokens(part.tokens, part.cache, vocab_size)
        if ids.size > part.cache.block_tokens or not 0 <= part.logits <= ids.size:
            raise ShapeError(
                f"a part of {ids.size} rows, {part.logits} with logits; its cache takes "
                f"{part.cache.block_tokens} at once"
            )
        rows += ids.size
        found.append(part if ids is part.tokens else Part(part.cache, ids, part.logits))
    if rows > step_rows or len({id(part.cache) for part in parts}) < len(parts):
        raise ShapeError(
            f"{rows} rows of {len(parts)} parts, expected at most {step_rows} rows and each cache "
            "once"
        )
    return found


def _step_tokens(backend: Backend, cache: KVCache) -> int:
    return min(cache.block_tokens, backend.capabilities.step_rows)
