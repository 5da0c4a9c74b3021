"""The target of all lowerings to CPU instructions, and what stands around an operation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, Table
from edgetok.models import ops
from edgetok.runtime.cpu.lowering.linears import Linears

Instructions = list[Instruction | Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """The buffers that instructions point to, beside weights.

    Attributes:
        values: a buffer for each value, by name.
        tokens: int32, one a row.
        positions: address of int32 [rows].
        ropes: for each rope the addresses of cos and sin.
        scratch: address of `launch_attention.scratch_bytes` for each thread.
    """

    values: Mapping[str, Floats]
    tokens: Span
    positions: int
    ropes: Sequence[tuple[int, int]]
    scratch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of lowering.

    Attributes:
        kernels: gives the addresses of kernels.
        linears: makes the products.
        weight: the address of a tensor, by name with suffix.
        buffers: buffers of the values.
        rotary_dims: number of rotated dims of each rope.
        head_dim: dims of attention, the most of any layer.
        record_heads: KV heads for which each layer has records in a cache (`most_kv_heads`).
        query_dim: dims of each head for which a layer has room in a ring of queries.
        kv_bits: bits of the caches.
        tied: whether the embedding is the head's matrix.
        constants: names of the cache's constants.
    """

    kernels: Addresses
    linears: Linears
    weight: Callable[[str], int]
    buffers: Buffers
    rotary_dims: Sequence[int]
    head_dim: int
    record_heads: int
    query_dim: int
    kv_bits: int
    tied: bool
    constants: Collection[str] = ()

    def constant(self, name: str, which: str) -> int:
        """The address of a constant of the cache; 0 for none."""
        full = f"{name}.{which}"
        return self.weight(full) if full in self.constants else 0

    def matrix(self, value: str, columns: int) -> Floats:
        """A value, of as many columns as it has now: layers may differ."""
        place = self.buffers.values[value]
        return Floats(place.address, place.tokens_max, columns, columns)

    def at(self, value: str) -> int:
        """The address of a value's first row."""
        return self.buffers.values[value].address


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """The operations around those that are lowered.

    Attributes:
        before: the operation before them.
        after: the operation behind them.
        wait: whether all threads wait before `after` begins.
    """

    before: ops.Op | None
    after: ops.Op | None
    wait: bool


Lowering = Callable[[Target, Sequence[Any], Near], Instructions]
