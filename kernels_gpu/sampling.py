"""The next token, chosen on the device: only its id crosses to the host.

As `edgetok.sampling.sampler.candidates`: top-k (equals of the k-th stay in), temperature, top-p
among those, min-p, then a draw in the order of ids. Nothing is sorted: the k-th largest of a block,
and the smallest weight that the nucleus needs, are found by bisection over the bits of floats,
whose order is that of integers. Two launches: blocks leave their MOST largest logits at most, one
program draws among them.

The random number comes from the host with each step, so a seed gives the tokens that it gives on
the CPU, and a captured graph draws again at every token.
"""

from __future__ import annotations

import torch
import triton.language as tl

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.jit import check, jit, launch, next_power

MOST = 64  # candidates that a block leaves, and the largest top_k
BLOCK = 4096  # logits of a block


@jit
def _ordered(x):  # type: ignore[no-untyped-def]
    """Integers in the order of float32."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _kth(order, wanted):  # type: ignore[no-untyped-def]
    """The largest value that at least `wanted` of `order` reach."""
    low = tl.min(order, axis=0).to(tl.int64)
    high = tl.max(order, axis=0).to(tl.int64)
    for _ in range(32):
        middle = low + (high - low + 1) // 2
        enough = tl.sum((order >= middle).to(tl.int32), axis=0) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@jit
def _candidates(  # type: ignore[no-untyped-def]
    logits, top_k, values, ids, N, MOST: tl.constexpr, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + at, mask=at < N, other=float("-inf"))
    x = tl.where(x == x, x, float("inf"))  # NaN counts as the largest
    slot = tl.arange(0, MOST)
    tl.store(values + block * MOST + slot, tl.full((MOST,), float("-inf"), tl.float32))
    order = _ordered(x)
    bar = _kth(order, tl.load(top_k))
    above = order > bar
    # Of more equals than there is room for, the first.
    equal = ((order == bar) & (x > float("-inf")) & (at < N)).to(tl.int32)
    room = MOST - tl.sum(above.to(tl.int32), axis=0)
    keep = above | ((equal > 0) & (tl.cumsum(equal, axis=0) <= room))
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.debug_barrier()
    tl.store(values + block * MOST + place, x, mask=keep)
    tl.store(ids + block * MOST + place, at, mask=keep)


@jit
def _draw(  # type: ignore[no-untyped-def]
    values, ids, top_k, shape, token, count, SIZE: tl.constexpr
):
    at = tl.arange(0, SIZE)
    x = tl.load(values + at, mask=at < count, other=float("-inf"))
    order = _ordered(x)
    keep = (order >= _kth(order, tl.load(top_k))) & (x > float("-inf"))
    best = tl.max(x, axis=0)
    known = (best < float("inf")) & (best > float("-inf"))
    x = tl.where(known, x, 0.0)
    best = tl.where(known, best, 0.0)
    temperature, top_p, min_p = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    weight = tl.where(keep, tl.exp((x - best) / temperature), 0.0)
    goal = top_p * tl.sum(weight, axis=0)
    # Weights are not negative, so their bits are in their order as they are.
    bits = weight.to(tl.int32, bitcast=True)
    low = tl.full((), 0, tl.int32)
    high = tl.max(bits, axis=0)
    for _ in range(31):
        middle = low + (high - low + 1) // 2
        enough = tl.sum(tl.where(bits >= middle, weight, 0.0), axis=0) >= goal
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    weight = tl.where((bits >= low) & (weight >= min_p), weight, 0.0)
    rising = tl.cumsum(weight, axis=0)
    aim = tl.load(shape + 3) * tl.max(rising, axis=0)
    place = tl.min(tl.where((rising > aim) & (weight > 0), at, SIZE), axis=0)
    chosen = tl.load(ids + place, mask=known & (place < SIZE), other=-1)
    tl.store(token, chosen)


class SamplingBuffers:
    """Inputs and outputs of sampling, all on the device, so that a graph can capture it.

    Attributes:
        top_k: int32 [1], 1..MOST.
        shape: float32 [4]: temperature (above 0), top_p, min_p, and the share of what may be drawn,
            in rising order of ids, that comes before the token, below 1.
        token: int32 [1]: the chosen id; -1 where no logit is finite.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        """Allocate."""
        self.top_k = torch.ones(1, dtype=torch.int32, device=device)
        self.shape = torch.tensor([1.0, 1.0, 0.0, 0.0], device=device)
        self.token = torch.full((1,), -1, dtype=torch.int32, device=device)
        self.blocks = -(-vocab_size // BLOCK)
        self.values = torch.empty((self.blocks, MOST), dtype=torch.float32, device=device)
        self.ids = torch.zeros((self.blocks, MOST), dtype=torch.int32, device=device)
        self._given: tuple[float, ...] = ()

    def choose(
        self, *, top_k: int, temperature: float, top_p: float, min_p: float, share: float
    ) -> None:
        """Options of a draw; a temperature of 0 takes the most likely token.

        Raises:
            ShapeError: top_k is not one that blocks leave room for.
        """
        if temperature == 0:
            top_k, temperature, share = 1, 1.0, 0.0
        if not 1 <= top_k <= MOST:
            raise ShapeError(f"top_k is {top_k}, expected 1..{MOST} on the device")
        given = (top_k, temperature, top_p, min_p)
        if given != self._given:  # seldom: each is a copy of its own
            self.top_k.fill_(top_k)
            for i, value in enumerate(given[1:]):
                self.shape[i : i + 1].fill_(value)  # an assignment would wait
            self._given = given
        self.shape[3:].fill_(min(share, 1 - 2**-24))  # as float32 still below 1


def sample(logits: torch.Tensor, buffers: SamplingBuffers) -> None:
    """Choose a token by `buffers` and leave it in `buffers.token`.

    The most likely one, the first of equals: top_k = 1 and a share of 0.

    Args:
        logits: float32 [vocab_size].
        buffers: made for as many logits.

    Raises:
        ShapeError: they were not.
    """
    check("logits", logits, torch.float32, -1)
    blocks = -(-len(logits) // BLOCK)
    if blocks != buffers.blocks:
        raise ShapeError(f"{len(logits)} logits for buffers of {buffers.blocks} blocks")
    launch(
        _candidates, (blocks,), logits, buffers.top_k, buffers.values, buffers.ids, len(logits),
        MOST=MOST, BLOCK=BLOCK, warps=8,
    )  # fmt: skip
    launch(
        _draw, (1,), buffers.values, buffers.ids, buffers.top_k, buffers.shape, buffers.token,
        blocks * MOST, SIZE=next_power(blocks * MOST), warps=8,
    )  # fmt: skip
