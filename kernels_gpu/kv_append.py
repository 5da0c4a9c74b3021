"""The slots of the KV cache on the device, and how a key or value is stored.

A slot holds one token's key and value and knows its position, so that slots may come in any order;
one that holds nothing has position EMPTY and finite values. A head owns a range of the rows of one
array, beginning at `starts[head]`; ranges may differ in size. Dims are padded to a multiple of 16
with zeros.

| kv_bits | keys and values         | scales                                               |
|---------|-------------------------|------------------------------------------------------|
| 4       | uint8 [rows, width / 2] | float32 [rows]: base and scale, bfloat16, high first |
| 8       | int8 [rows, width]      | float32 [rows]                                       |
| 16      | float16 [rows, width]   | none                                                 |

At 4 and 8 bits what is stored is rotated by `hadamard`, keys as (k - centre) * factor where the
artefact has such constants, to meet queries q / factor. At 4 bits byte j holds dims 2 j (low) and 2
j + 1, codes divide what is between the smallest and the largest of x and 0 evenly, and scale and
base are those with which code * scale + base is nearest to x by least squares. At 8 bits scale =
absmax / 127, code = round(x / scale), to nearest even; at 16 values beyond float16 are clamped to
its largest number. All as in kernels_cpu.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.hadamard import hadamard_log
from edgetok.kernels_gpu.jit import check, jit

KV_BITS = (4, 8, 16)
KINDS = {4: torch.uint8, 8: torch.int8, 16: torch.float16}
EMPTY = 2**31 - 1
_DIM_TILE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """One layer's constants of slots of 4 and 8 bits, float32 [KH, D] each."""

    centre: torch.Tensor
    factor: torch.Tensor
    query_factor: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """One layer's part of a cache.

    Attributes:
        bits: one of KV_BITS.
        head_dim: D.
        keys, values: see above; rows may be those of all layers.
        key_scales, value_scales: float32; empty at 16 bits.
        positions: int32 [rows]; or, of heads that keep the same tokens, of one head's slots.
        starts: int32 [KH], each head's first row.
        used: int32 [KH], or [1] for all: slots of a head past this one hold nothing.
        span: slots of the largest head.
        mass: float32 [rows], attention that each slot got, or None.
        queries: float32 [W, H, D] for the latest queries before their rotation, or None.
        constants: see above; None for none, as at 16 bits.
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
    constants: Constants | None = None

    def __post_init__(self) -> None:
        """Check once, so that launchers need not.

        Raises:
            ShapeError: arrays do not go together.
        """
        if self.bits not in KV_BITS:
            raise ShapeError(f"kv_bits is {self.bits}, expected one of {KV_BITS}")
        rows, heads = len(self.keys), len(self.starts)
        kind, width = KINDS[self.bits], row_entries(self.head_dim, self.bits)
        scales = 0 if self.bits == 16 else rows
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
        if self.constants is not None:
            if self.bits == 16:
                raise ShapeError("slots of 16 bits have no constants")
            for name in ("centre", "factor", "query_factor"):
                part = getattr(self.constants, name)
                check(name, part, torch.float32, heads, self.head_dim)
                if not part.is_contiguous():
                    raise ShapeError(f"{name} has strides {part.stride()}")
        if self.queries is not None:
            check("queries", self.queries, torch.float32, -1, -1, self.head_dim)

    @property
    def kv_heads(self) -> int:
        """Return KH."""
        return len(self.starts)

    @property
    def own_positions(self) -> bool:
        """Return whether each head keeps tokens of its own."""
        return len(self.positions) == len(self.keys)

    @property
    def used_stride(self) -> int:
        """Return the distance from one head's `used` to the next."""
        return 0 if len(self.used) == 1 else 1

    @property
    def width(self) -> int:
        """Values of a slot, padding included."""
        return padded_head_dim(self.head_dim)

    @property
    def rotation_log(self) -> int:
        """Return the LOG of `hadamard` for stored rows and the rows that meet them."""
        return rotation_log(self.head_dim, self.bits)


def padded_head_dim(head_dim: int) -> int:
    """head_dim rounded up to a multiple of 16."""
    return -(-head_dim // _DIM_TILE) * _DIM_TILE


def row_entries(head_dim: int, kv_bits: int) -> int:
    """Entries of one slot's key or value."""
    return padded_head_dim(head_dim) // (2 if kv_bits == 4 else 1)


def rotation_log(head_dim: int, kv_bits: int) -> int:
    """LOG of `hadamard` for a kind of slot; 0 for none."""
    return hadamard_log(head_dim) if kv_bits <= 8 else 0


@jit
def _round_even(x):  # type: ignore[no-untyped-def]
    """Round to the nearest integer, ties to even; magnitudes below 2^22."""
    return (x + 12582912.0) - 12582912.0


@jit
def _nearest_bfloat16(x):  # type: ignore[no-untyped-def]
    """Bits of the bfloat16 nearest to x, in the upper half."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536


@jit
def store_slots(  # type: ignore[no-untyped-def]
    to, scales, at, live, v, D, width,
    KV_BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store v [ROWS, BLOCK], zero from D on, in rows `at` [ROWS]; it comes rotated if slots are."""
    dims = tl.arange(0, BLOCK)
    inside = live[:, None] & (dims < width)[None, :]
    if KV_BITS == 4:
        low = tl.minimum(tl.min(v, axis=1), 0.0)
        between = tl.maximum(tl.max(v, axis=1), 0.0) - low
        small = between < 1e-36
        inverse = tl.where(small, 0.0, 15.0 / tl.where(small, 1.0, between))
        none = _round_even(-low * inverse)  # of 0: codes are summed from there, padding adds none
        code = _round_even((v - low[:, None]) * inverse[:, None]) - none[:, None]
        codes, total = tl.sum(code, axis=1), tl.sum(v, axis=1)
        apart = D * tl.sum(code * code, axis=1) - codes * codes
        scale = D * tl.sum(code * v, axis=1) - codes * total
        scale = tl.where(apart > 0, tl.maximum(scale / tl.where(apart > 0, apart, 1.0), 0.0), 0.0)
        scale_bits = _nearest_bfloat16(scale)
        scale = scale_bits.to(tl.float32, bitcast=True)
        base = _nearest_bfloat16((total - scale * codes) / D - scale * none)
        tl.store(scales + at, (base | (scale_bits >> 16)).to(tl.float32, bitcast=True), mask=live)
        whole = (code + none[:, None]).to(tl.int32)
        even, odd = tl.split(tl.reshape(whole, (ROWS, BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2)
        tl.store(
            to + at[:, None] * (width // 2) + pair[None, :],
            (even | (odd << 4)).to(tl.uint8),
            mask=live[:, None] & (pair < width // 2)[None, :],
        )
    elif KV_BITS == 8:
        largest = tl.max(tl.abs(v), axis=1)
        # Below it 127 / absmax would not be a float32; such a slot is zero for all purposes.
        small = largest < 1e-36
        inverse = tl.where(small, 0.0, 127.0 / tl.where(small, 1.0, largest))
        code = _round_even(v * inverse[:, None]).to(tl.int8)
        tl.store(to + at[:, None] * width + dims[None, :], code, mask=inside)
        tl.store(scales + at, tl.where(small, 0.0, largest / 127.0), mask=live)
    else:
        v = tl.minimum(tl.maximum(v, -65504.0), 65504.0)
        tl.store(to + at[:, None] * width + dims[None, :], v.to(tl.float16), mask=inside)


@jit
def load_codes(  # type: ignore[no-untyped-def]
    memory, rows, dims, width, live, KV_BITS: tl.constexpr
):
    """Codes, at 16 bits values, of rows and dims that are broadcast against each other."""
    if KV_BITS == 4:
        pairs = tl.load(memory + rows * (width // 2) + dims // 2, mask=live, other=0)
        code = (pairs.to(tl.int32) >> (dims % 2 * 4)) & 15
    else:
        code = tl.load(memory + rows * width + dims, mask=live, other=0)
    return code


@jit
def load_scales(scales, rows, live, KV_BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scale and base of rows: x = code * scale + base."""
    scale = tl.load(scales + rows, mask=live, other=0)
    base = tl.zeros_like(scale)
    if KV_BITS == 4:
        word = scale.to(tl.int32, bitcast=True)
        scale = (word << 16).to(tl.float32, bitcast=True)
        base = (word & -65536).to(tl.float32, bitcast=True)
    return scale, base
