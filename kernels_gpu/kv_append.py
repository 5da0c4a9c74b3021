"""The slots of the KV cache on the device, and how a key or value is stored.

A slot holds one token's key and value and knows its position, so that slots may come in any order;
one that holds nothing has position EMPTY and finite values. A head owns a range of the rows of one
array, beginning at `starts[head]`; ranges may differ in size. Dims are padded to a multiple of 16
with zeros.

| kv_bits | keys and values         | scales         |
|---------|-------------------------|----------------|
| 8       | int8 [rows, width]      | float32 [rows] |
| 16      | float16 [rows, width]   | none           |

At 8 bits scale = absmax / 127, code = round(x / scale), to nearest even; at 16 values beyond
float16 are clamped to its largest number. Both as in kernels_cpu.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.jit import check, jit

KV_BITS = (8, 16)
EMPTY = 2**31 - 1
_DIM_TILE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """One layer's part of a cache.

    Attributes:
        bits: one of KV_BITS.
        head_dim: D.
        keys, values: [rows, width]; rows may be those of all layers.
        key_scales, value_scales: float32 [rows]; empty at 16 bits.
        positions: int32 [rows]; or, of heads that keep the same tokens, of one head's slots.
        starts: int32 [KH], each head's first row.
        used: int32 [KH], or [1] for all: slots of a head past this one hold nothing.
        span: slots of the largest head.
        mass: float32 [rows], attention that each slot got, or None.
        queries: float32 [W, H, D] for the latest queries before their rotation, or None.
    """

    bits: int
    head_dim: int
    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor
    value_scales: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    used: torch.Tensor
    span: int
    mass: torch.Tensor | None = None
    queries: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check once, so that launchers need not.

        Raises:
            ShapeError: arrays do not go together.
        """
        if self.bits not in KV_BITS:
            raise ShapeError(f"kv_bits is {self.bits}, expected one of {KV_BITS}")
        rows, heads = len(self.keys), len(self.starts)
        width = padded_head_dim(self.head_dim)
        kind = torch.int8 if self.bits == 8 else torch.float16
        scales = rows if self.bits == 8 else 0
        places = rows if self.own_positions else self.span
        for name, tensor, dtype, shape in (
            ("keys", self.keys, kind, (rows, width)),
            ("values", self.values, kind, (rows, width)),
            ("key_scales", self.key_scales, torch.float32, (scales,)),
            ("value_scales", self.value_scales, torch.float32, (scales,)),
            (
                "positions",
                self.positions,
                torch.int32,
                (places,),
            ),
            ("starts", self.starts, torch.int32, (heads,)),
            ("used", self.used, torch.int32, (1 if len(self.used) == 1 else heads,)),
            *([] if self.mass is None else [("mass", self.mass, torch.float32, (rows,))]),
        ):
            check(name, tensor, dtype, *shape)
            if not tensor.is_contiguous():
                raise ShapeError(f"{name} has strides {tensor.stride()}")
        if rows >= EMPTY:
            raise ShapeError(f"{rows} slots, expected fewer than {EMPTY}")
        if self.queries is not None:
            check("queries", self.queries, torch.float32, -1, -1, self.head_dim)

    @property
    def kv_heads(self) -> int:
        """KH."""
        return len(self.starts)

    @property
    def own_positions(self) -> bool:
        """Whether each head keeps tokens of its own."""
        return len(self.positions) == len(self.keys)

    @property
    def used_stride(self) -> int:
        """From one head's `used` to the next."""
        return 0 if len(self.used) == 1 else 1

    @property
    def width(self) -> int:
        """Values of a slot, padding included."""
        return padded_head_dim(self.head_dim)


def padded_head_dim(head_dim: int) -> int:
    """head_dim rounded up to a multiple of 16."""
    return -(-head_dim // _DIM_TILE) * _DIM_TILE


@jit
def round_even(x):  # type: ignore[no-untyped-def]
    """To the nearest integer, to even on ties; magnitudes below 2^22."""
    return (x + 12582912.0) - 12582912.0


@jit
def store_slot(  # type: ignore[no-untyped-def]
    to, scales, at, v, dims, width, KV_BITS: tl.constexpr
):
    """Store v [BLOCK] in row `at`."""
    inside = dims < width
    if KV_BITS == 8:
        largest = tl.max(tl.abs(v), axis=0)
        # Below it 127 / absmax would not be a float32; such a slot is zero for all purposes.
        small = largest < 1e-36
        inverse = tl.where(small, 0.0, 127.0 / tl.where(small, 1.0, largest))
        tl.store(to + at * width + dims, round_even(v * inverse).to(tl.int8), mask=inside)
        tl.store(scales + at, tl.where(small, 0.0, largest / 127.0))
    else:
        v = tl.minimum(tl.maximum(v, -65504.0), 65504.0)
        tl.store(to + at * width + dims, v.to(tl.float16), mask=inside)
