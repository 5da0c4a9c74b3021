"""The GPU backend: Triton kernels over the artefact's weights, copied to the device as they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from edgetok.cache.bounds import bounds_for
from edgetok.cache.key_constants import key_constants
from edgetok.cache.limits import CacheLimits
from edgetok.errors import (
    ArtefactError,
    EdgetokError,
    OptionError,
    UnsupportedError,
)
from edgetok.formats.artefact import Artefact
from edgetok.kernels_gpu import tuning
from edgetok.kernels_gpu.device import Device, find
from edgetok.kernels_gpu.kv_append import KV_BITS, Constants
from edgetok.kernels_gpu.sampling import SamplingBuffers, sample
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Capabilities, GpuCompute, Logits, Part
from edgetok.runtime.base import SpecBackend, with_spec
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.gpu.cache_memory import KIND, GpuCache, compact_bytes, new_cache
from edgetok.runtime.gpu.inputs import Inputs
from edgetok.runtime.gpu.placement import check_layers, place, some_layers
from edgetok.runtime.gpu.plan import GpuPlan, GpuPlanOptions
from edgetok.sampling.device import Draw

# Tokens computed at once in a prefill: enough for tensor cores, few enough that buffers of an 8B
# model stay below 400 MB and a cancelled prefill stops soon.
BLOCK_TOKENS = 1024
_HEAD_TOKENS = 32


def plan_options(compute: GpuCompute, block_tokens: int = BLOCK_TOKENS) -> GpuPlanOptions:
    """Return the options of a plan for all layers."""
    return GpuPlanOptions(
        compute=compute, block_tokens=block_tokens, head_tokens=min(_HEAD_TOKENS, block_tokens)
    )


class GpuBackend(SpecBackend):
    """Computes logits on a GPU; see `Backend`.

    A decode step is captured once for each cache, as a graph, and then launched as one: nothing in
    it waits for the host. `step_sampled` brings back the chosen id alone. Parts of a step are
    computed one after the other.
    """

    name = "cuda"
    _cache_kind = KIND

    def __init__(
        self,
        artefact: Artefact | str | os.PathLike[str],
        *,
        device: Device | None = None,
        before: CpuBackend | None = None,
        kv_bits: int = 8,
        compute: GpuCompute = "float16",
        block_tokens: int = BLOCK_TOKENS,
        cache_dir: Path | None = None,
    ) -> None:
        """Copy the weights to the device.

        Args:
            artefact: an opened artefact, or its folder.
            device: where; None for the first GPU.
            before: computes the embedding and the layers that it has (`gpu_memory.first_layers`);
                closed with this backend. None for all on the GPU.
            kv_bits: 4, 8 or 16 for each key and value of the cache.
            compute: of prefill's products: "float16", or "float32" to compare with. One token's
                products are float32 either way.
            block_tokens: tokens computed at once in a prefill.
            cache_dir: where tile sizes that were measured on this GPU are; None for defaults.

        Raises:
            ArtefactError: the folder is damaged or has no spec.
            MissingExtraError: torch or Triton is not installed.
            OptionError: an option is out of range, or the model does not fit.
            UnsupportedError: there is no GPU, or it cannot run this model.
        """
        if kv_bits not in KV_BITS:
            raise OptionError(f"kv_bits is {kv_bits!r}, the GPU backend has {KV_BITS}")
        if compute not in get_args(GpuCompute):
            raise OptionError(f"compute is {compute!r}, expected one of {get_args(GpuCompute)}")
        # Blocks of one token would fill the same host memory again before it was copied.
        if type(block_tokens) is not int or not 2 <= block_tokens <= 4096:
            raise OptionError(f"block_tokens is {block_tokens!r}, expected 2..4096")
        artefact, self._whole = with_spec(artefact)
        check_layers(self._whole)
        for name, form in artefact.formats.items():
            if form.supers or form.offsets:
                raise UnsupportedError(
                    f"{artefact.folder}: {name} has {form.bits} bits with super-scales or offsets, "
                    "which the GPU backend does not take; use --device cpu, or convert with --bits"
                )
        self._artefact, self._before = artefact, before
        first = 0 if before is None or before.spec is None else before.spec.num_layers
        self._spec = some_layers(self._whole, first, self._whole.num_layers)
        self._device = device or find()
        if cache_dir is not None:
            tuning.read(tuning.table(cache_dir, self._device.name))
        self._kv_bits, self._block_tokens = kv_bits, block_tokens
        self._turn = threading.Lock()
        self._closed = False
        options = replace(plan_options(compute, block_tokens), first_layer=first)
        placed = place(
            artefact, self._whole, self._whole.num_layers - first, options=options,
            kv_bits=kv_bits, cache_tokens=0,
        )  # fmt: skip
        self._device.require(placed.device_bytes, "the model", "give a smaller --gpu-layers")
        with self._device.active():
            self._plan: GpuPlan | None = GpuPlan(self._spec, artefact, self._device, options)
            self._constants = self._key_constants(first)
            self._sampling = SamplingBuffers(self._spec.vocab_size, self._device.torch_device)

    @property
    def spec(self) -> DecoderSpec:
        """The decoder's description."""
        return self._whole

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities; caches that evict need all layers on the device."""
        return Capabilities(
            together=False,
            step_rows=self._block_tokens,
            evicts=self._before is None,
            samples=True,
            threads=None if self._before is None else self._before.threads,
        )

    @property
    def device_name(self) -> str:
        """Return the GPU's name."""
        return self._device.name

    @property
    def device_bytes(self) -> int:
        """Bytes of weights and buffers on the device, without caches."""
        return self._open().nbytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on the device."""
        return self._open().weight_bytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads."""
        return self._open().bytes_per_token

    def new_cache(self, capacity_tokens: int) -> GpuCache:
        """Allocate an empty cache on the device, all its bytes at once.

        Raises:
            OptionError: less than one token, or more than its memory can hold.
        """
        with self._turn, self._device.active():
            return new_cache(
                self._spec,
                self._device,
                capacity_tokens=capacity_tokens,
                kv_bits=self._kv_bits,
                block_tokens=self._block_tokens,
                constants=self._constants,
                before=None if self._before is None else self._before.new_cache(capacity_tokens),
            )

    def new_bounded_cache(self, context_tokens: int, limits: CacheLimits) -> GpuCache:
        """Allocate an empty cache for a conversation of any length. See `Backend`.

        Raises:
            OptionError: the limits are too tight.
            UnsupportedError: some layers are on the CPU.
        """
        if self._before is not None:
            raise UnsupportedError(
                "a bounded cache needs all layers on one device; remove --gpu-layers, or "
                "give --kv-policy none"
            )
        bounds = bounds_for(
            self._spec,
            limits,
            context_tokens,
            block_tokens=self._block_tokens,
            bytes_of=lambda sizes: compact_bytes(self._spec, sizes, self._kv_bits),
        )
        with self._turn, self._device.active():
            return new_cache(
                self._spec,
                self._device,
                capacity_tokens=self._spec.context_tokens,
                kv_bits=self._kv_bits,
                block_tokens=bounds.block_tokens,
                bounds=bounds,
                constants=self._constants,
            )

    def step(self, parts: Sequence[Part]) -> list[Logits]:
        """Append each part's tokens and compute the logits it asks for. See `Backend.step`.

        One row of logits belongs to the cache and is overwritten by its next step; several are new.

        Raises:
            ContextError: a part's tokens do not fit; nothing was changed.
            OptionError: a token id is not below the vocabulary's size; likewise.
            ShapeError: parts of a wrong size, or a cache of another backend; likewise.
        """
        return [self._part(part, cache) for part, cache in self._checked(parts)]

    def step_sampled(self, parts: Sequence[Part], draws: Sequence[Draw]) -> list[int]:
        """Append each part's tokens and choose the next one on the device. See `Backend`.

        Raises:
            ArtefactError: the logits are not finite.
            ContextError: as for `step`, like all others.
        """
        checked, chosen = self._checked(parts), np.empty(1, np.int32)
        found = []
        for (part, cache), draw in zip(checked, draws, strict=True):
            with self._turn, self._device.active():
                plan = self._open()
                self._sampling.choose(
                    top_k=draw.top_k,
                    temperature=draw.temperature,
                    top_p=draw.top_p,
                    min_p=draw.min_p,
                    share=draw.share,
                )
                self._step(plan, cache, part.tokens, sampled=True)
                self._device.fetch(self._sampling.token, chosen)
                cache.advance(part.tokens.size)
            found.append(int(chosen[0]))
        if min(found, default=0) < 0:
            raise ArtefactError(
                "the model's logits are not finite; its weights are damaged: run `edgetok verify` "
                "on the folder"
            )
        return found

    def _part(self, part: Part, cache: GpuCache) -> Logits:
        rows = part.tokens.size
        several = np.empty((part.logits, self.vocab_size), np.float32) if part.logits > 1 else None
        with self._turn, self._device.active():
            plan = self._open()
            if several is not None:
                plan.body(self._send(cache, part.tokens), cache.memory, part.logits)
                self._last_logits(plan, rows, several)
            elif part.logits:
                self._step(plan, cache, part.tokens, sampled=False)
                self._device.fetch(plan.logits[0], cache.logits)
            else:
                plan.body(self._send(cache, part.tokens), cache.memory, 0)
            cache.advance(rows)
        return cache.logits[None, :][: part.logits] if several is None else several

    def close(self) -> None:
        """Give the device's memory back and release the mapping. A second call does nothing."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            self._plan = None
            if self._before is not None:
                self._before.close()
            self._artefact.close()
            self._device.release()

    def _key_constants(self, first: int) -> list[Constants | None]:
        """Constants of each layer on the device."""
        known = key_constants(self._artefact, self._spec, first)
        if known is None or self._kv_bits == 16:
            return [None] * self._spec.num_layers
        return [
            Constants(
                centre=self._device.copy(layer.centre),
                factor=self._device.copy(layer.factor),
                query_factor=self._device.copy(np.float32(1.0) / layer.factor),
            )
            for layer in (known[i] for i in range(self._spec.num_layers))
        ]

    def _open(self) -> GpuPlan:
        if self._plan is None:
            raise EdgetokError("this backend was closed; load the model again")
        return self._plan

    def _step(
        self, plan: GpuPlan, cache: GpuCache, ids: npt.NDArray[np.int32], *, sampled: bool
    ) -> None:
        """A block and its last token's logits, and with `sampled` the choice."""

        def launches(inputs: Inputs) -> None:
            plan.body(inputs, cache.memory, 1)
            plan.head(inputs.count)
            if sampled:
                sample(plan.logits[0], self._sampling)

        inputs = self._send(cache, ids)  # may evict, which drops the captured graph
        if ids.size > 1:
            launches(inputs)
            return
        step = cache.memory.steps.get(sampled)
        if step is not None:
            step()
            return
        launches(inputs)  # compiles what is not compiled yet, which a capture must not do
        cache.memory.steps[sampled] = self._device.capture(lambda: launches(inputs))

    def _send(self, cache: GpuCache, ids: npt.NDArray[np.int32]) -> Inputs:
        """The next tokens, and what the layers on the CPU make of them, to the device."""
        inputs = cache.memory.one if ids.size == 1 else None
        if inputs is None:
            split = self._before is not None
            inputs = Inputs(
                self._device, self._spec, len(cache.memory.used), ids.size, hidden=split
            )
        if ids.size == 1:
            cache.memory.one = inputs
        hidden = None
        if self._before is not None and cache.before is not None:
            hidden = self._before.hidden(cache.before, ids)
        inputs.send(cache, ids, hidden)
        return inputs

    def _last_logits(self, plan: GpuPlan, rows: int, out: Logits) -> None:
        first = rows - len(out)
        for begin in range(0, len(out), _HEAD_TOKENS):
            end = min(begin + _HEAD_TOKENS, len(out))
            self._device.fetch(plan.many_logits(first + begin, first + end), out[begin:end])
