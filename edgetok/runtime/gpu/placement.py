"""Placement of layers on a GPU, with the bytes of each side, before anything is allocated.

The last layers and the head are the GPU's; what comes before stays on the CPU, so that one hidden
state a token goes over and one chosen id comes back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from edgetok.cache.groups import ring_slots
from edgetok.errors import OptionError, UnsupportedError
from edgetok.formats.artefact import Artefact
from edgetok.kernels_gpu.device import Device
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.cache_memory import CacheStore
from edgetok.runtime.cpu.cache_memory import new_cache as new_cpu_cache
from edgetok.runtime.gpu.cache_memory import cache_bytes
from edgetok.runtime.gpu.plan import GpuPlanOptions, buffer_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A number of layers on a GPU, and bytes on either side.

    Attributes:
        layers: the last ones, on the GPU.
        total: number of layers of the decoder.
        weights_bytes, cache_bytes, workspace_bytes: on the GPU.
        host_weights_bytes, host_cache_bytes: on the CPU, weights mapped from the file.
    """

    layers: int
    total: int
    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    host_weights_bytes: int
    host_cache_bytes: int

    @property
    def device_bytes(self) -> int:
        """Bytes that the GPU must have free."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes

    def describe(self, device: Device) -> str:
        """The plan in a line."""
        free, total = device.memory()
        line = (
            f"{self.layers} of {self.total} layers on {device.name}: weights "
            f"{_mb(self.weights_bytes)} + cache {_mb(self.cache_bytes)} + workspace "
            f"{_mb(self.workspace_bytes)} = {_mb(self.device_bytes)} MB of {_mb(free)} MB free "
            f"(of {_mb(total)})"
        )
        if self.layers == self.total:
            return line
        return (
            f"{line}; on the CPU: weights {_mb(self.host_weights_bytes)} + cache "
            f"{_mb(self.host_cache_bytes)} MB"
        )


def place(
    artefact: Artefact,
    spec: DecoderSpec,
    layers: int,
    *,
    options: GpuPlanOptions,
    kv_bits: int,
    cache_tokens: int,
    cache_budget: int | None = None,
) -> Placement:
    """Return the placement of a number of the last layers, with its bytes.

    Args:
        artefact: with a layout.
        spec: the whole decoder.
        layers: 1 to all.
        options: options of the plan.
        kv_bits: bits of the cache.
        cache_tokens: that it is to hold; 0 for no cache.
        cache_budget: bytes of a bounded one, in place of that.
    """
    check_layers(spec)
    first = spec.num_layers - layers
    there = some_layers(spec, first, spec.num_layers)
    weights = {True: 0, False: 0}
    tensors = artefact.layout.tensors if artefact.layout is not None else {}
    for name, slot in tensors.items():
        weights[_on_device(name, first)] += slot.nbytes
    cache = host_cache = 0
    if cache_budget is not None:
        cache = cache_budget
    elif cache_tokens:
        slots = ring_slots(there, cache_tokens, options.block_tokens, 64)
        cache = cache_bytes(there, slots, kv_bits)
        if first:  # not touched, so this takes addresses but no memory
            host_cache = new_cpu_cache(
                some_layers(spec, 0, first),
                CacheStore(1),
                capacity_tokens=cache_tokens,
                kv_bits=kv_bits,
                block_tokens=1,
            ).nbytes
    return Placement(
        layers=layers,
        total=spec.num_layers,
        weights_bytes=weights[True],
        cache_bytes=cache,
        workspace_bytes=buffer_bytes(there, options),
        host_weights_bytes=weights[False],
        host_cache_bytes=host_cache,
    )


def check_layers(spec: DecoderSpec) -> None:
    """Refuse layers that share keys and values, of other sizes or with inputs of their own.

    Raises:
        UnsupportedError: the decoder has such layers.
    """
    if not spec.uniform or spec.per_layer_size:
        raise UnsupportedError(
            f"{spec.family}: the gpu backend does not compute layers that share keys and values, "
            "have heads of other sizes or inputs of their own; use --device cpu"
        )


def require(wanted: Placement, largest: int, device: Device) -> None:
    """Refuse a plan that does not fit on the GPU; `largest` layers would fit.

    Raises:
        OptionError: names the bytes, and what would do.
    """
    free, _ = device.memory()
    if wanted.device_bytes <= free:
        return
    remedy = f"use --gpu-layers {largest}, or --device cpu" if largest else "use --device cpu"
    raise OptionError(f"too little memory for {wanted.describe(device)}; {remedy}")


def some_layers(spec: DecoderSpec, first: int, end: int) -> DecoderSpec:
    """The decoder of some of the layers."""
    return replace(spec, layers=spec.layers[first:end])


def first_layers(artefact: Artefact, spec: DecoderSpec, count: int) -> Artefact:
    """The same artefact, of which only embedding and first layers are run."""
    made = copy.copy(artefact)
    made.spec = some_layers(spec, 0, count)
    return made


def _on_device(name: str, first: int) -> bool:
    """Return whether a tensor belongs to a layer from `first` on, or to the head."""
    if name.startswith("layers."):
        return int(name.split(".")[1]) >= first
    return first == 0 or not name.startswith("embed_tokens")


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f}"
