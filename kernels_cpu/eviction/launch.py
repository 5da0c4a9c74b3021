"""Instructions of eviction and renumbering, and what they read. No numba here.

Each head (layer and KV head) of a cache that evicts has lists of slots of its own. A record says
where they are:

    EV_PAGES        address of int64 [pages, 4]: addresses of the keys, values, key scales and value
                    scales in each page, in the layout of `attention/launch.py`
    EV_POSITIONS    address of int32 [slots]; EMPTY where a slot holds nothing
    EV_TOKENS       address of int32 [slots]: which token of the sequence a slot holds
    EV_FREQUENCIES  address of float64 [pairs]: radians a position of the layer's rope
    EV_PAIRS        how many; 0 where keys are not rotated
    EV_CENTRE       address of float32 [D], and
    EV_FACTOR       of another: slots of 4 to 8 bits hold the Hadamard transform of
                    (k - centre) * factor; 0 for both: of k
    EV_REST         address of the head's rest, as REC_REST of attention; 0: it has none

Slots are a multiple of SLOT_TILE, those of a page too. Heads are shared out among threads. Scores
are float32 [heads, slots]; higher is kept.
"""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.attention.launch import (
    KV_BITS,
    SLOT_TILE,
    hadamard_block,
    padded_head_dim,
)
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, float_bits, instruction

(
    EV_PAGES,
    EV_POSITIONS,
    EV_TOKENS,
    EV_FREQUENCIES,
    EV_PAIRS,
    EV_CENTRE,
    EV_FACTOR,
    EV_REST,
) = range(8)
EV_RECORD_SLOTS = 8

EV_HEADS, EV_RECORDS, EV_SLOTS, EV_SCRATCH, EV_SCRATCH_BYTES = range(2, 7)
EV_FIRST = 7  # of the slots that are an instruction's own
SCORE_OUT, SCORE_PAGE_SLOTS, SCORE_DIMS, SCORE_PADDED, SCORE_BLOCK = range(EV_FIRST, 12)
(
    CHOOSE_SCORES,
    CHOOSE_ROOM,
    CHOOSE_FRONT,
    CHOOSE_RECENT,
    CHOOSE_OUT,
    CHOOSE_COUNTS,
    CHOOSE_AROUND,
    CHOOSE_FAR,
    CHOOSE_MOST_FAR,
) = range(EV_FIRST, 16)
AROUND = 2
SHARE_SCORES = EV_FIRST
OF_ALL = 0.5  # weight of what all heads say, in `share_scores`
RENUMBER_SHIFT, RENUMBER_FRONT, RENUMBER_POSITIONS, RENUMBER_BY = range(EV_FIRST, 11)
(
    ROTATE_BY,
    ROTATE_PAGE_SLOTS,
    ROTATE_DIMS,
    ROTATE_PADDED,
    ROTATE_BLOCK,
    ROTATE_SCALE,
    ROTATE_REST,
) = range(EV_FIRST, 14)
REST_EVICTED, REST_COUNTS, REST_PAGE_SLOTS, REST_DIMS, REST_PADDED = range(EV_FIRST, 12)


def scratch_bytes(slots: int, head_dim: int) -> int:
    """Scratch memory that each thread needs for all of these."""
    vectors = 33 * 4 * (head_dim + 32)  # two vectors of at most 16 floats a dim, and a mean
    return vectors + 8 * slots + 64


def key_scores(
    kernels: Addresses,
    *,
    policy: str,
    kv_bits: int,
    heads: int,
    records: int,
    slots: int,
    page_slots: int,
    head_dim: int,
    scores: int,
    scratch: int,
    wait: bool,
) -> Instruction:
    """Scores as `cache/policies/` defines them; 0 for empty slots.

    Args:
        kernels: the loaded kernels.
        policy: "retain" or "content".
        kv_bits: of keys and values.
        heads: how many.
        records: address of int64 [heads, EV_RECORD_SLOTS].
        slots: of each head.
        page_slots: of each page but the last.
        head_dim: D.
        scores: address of float32 [heads, slots], written.
        scratch: address of `scratch_bytes` for each thread.
        wait: see `instruction`.

    Raises:
        ShapeError: sizes are not what kernels take.
    """
    _check(kv_bits, slots, page_slots)
    args = (
        *_common(heads, records, slots, scratch, head_dim),
        scores,
        page_slots,
        head_dim,
        padded_head_dim(head_dim, kv_bits),
        hadamard_block(head_dim),
    )
    return instruction(kernels.address(f"{policy}_scores_{kv_bits}"), *args, wait=wait)


def window_scores(
    kernels: Addresses, *, heads: int, records: int, slots: int, scores: int, wait: bool
) -> Instruction:
    """Scores of the policy `window`: a token's number. Arguments as for `key_scores`."""
    args = (*_common(heads, records, slots, 0, 0), scores)
    return instruction(kernels.address("window_scores"), *args, wait=wait)


def share_scratch_bytes(heads: int, slots: int) -> int:
    """Scratch memory that `share_scores` needs, once, for so many slots of all heads together."""
    return 8 * slots + 16 * heads


def share_scores(
    kernels: Addresses,
    *,
    heads: int,
    records: int,
    slots: int,
    scores: int,
    scratch: int,
    wait: bool,
) -> Instruction:
    """Let heads judge together, as `cache/policies/shared.py` says. One thread does it.

    Args:
        kernels: the loaded kernels.
        heads: how many.
        records: address of int64 [heads, EV_RECORD_SLOTS].
        slots: of each head.
        scores: address of float32 [heads, slots], changed; of empty slots not.
        scratch: address of `share_scratch_bytes`.
        wait: see `instruction`.
    """
    _check(32, slots, slots)
    args = (heads, records, slots, scratch, 0, scores)
    return instruction(kernels.address("share_scores"), *args, wait=wait)


def choose_evicted(
    kernels: Addresses,
    *,
    heads: int,
    records: int,
    slots: int,
    scores: int,
    room: int,
    front: int,
    recent: int,
    around: int,
    far: int,
    most_far: int,
    evicted: int,
    counts: int,
    scratch: int,
    wait: bool,
) -> Instruction:
    """List the slots that each head gives up until `room` are held: the lowest scores.

    Tokens before `front` and from `recent` on go last; of those before `far` all but `most_far` go
    first, even where there is room. Of equal scores the oldest go. A score that is NaN counts as
    infinite.

    Args:
        kernels: the loaded kernels.
        heads: how many.
        records: address of int64 [heads, EV_RECORD_SLOTS].
        slots: of each head.
        scores: address of float32 [heads, slots].
        room: tokens that each head may keep.
        front: tokens before it are protected.
        recent: tokens from it on are.
        around: AROUND, or 0: how many before a token and after it count with their scores.
        far: tokens before it, protected ones aside, are far from the next one.
        most_far: how many of those each head may keep.
        evicted: address of int32 [heads, slots]: slots, ascending, as many as `counts` says.
        counts: address of int64 [heads].
        scratch: address of `scratch_bytes` for each thread.
        wait: see `instruction`.
    """
    _check(32, slots, slots)
    if around not in (0, AROUND):
        raise ShapeError(f"{around} tokens around each, expected 0 or {AROUND}")
    args = (*_common(heads, records, slots, scratch, 0), scores, room, front, recent, evicted)
    rules = (counts, around, far, most_far)
    return instruction(kernels.address("choose_evicted"), *args, *rules, wait=wait)


def join_rests(
    kernels: Addresses,
    *,
    kv_bits: int,
    heads: int,
    records: int,
    slots: int,
    page_slots: int,
    head_dim: int,
    evicted: int,
    counts: int,
    scratch: int,
    wait: bool,
) -> Instruction:
    """Let what slots hold join their heads' rests, before they are emptied: `rest.py`.

    Args:
        kernels: the loaded kernels.
        kv_bits: of keys and values.
        heads: how many.
        records: address of int64 [heads, EV_RECORD_SLOTS].
        slots: of each head.
        page_slots: of each page but the last.
        head_dim: D.
        evicted: address of int32 [heads, slots], as `choose_evicted` writes them.
        counts: address of int64 [heads], likewise.
        scratch: address of `scratch_bytes` for each thread.
        wait: see `instruction`.

    Raises:
        ShapeError: sizes are not what kernels take.
    """
    _check(kv_bits, slots, page_slots)
    common = _common(heads, records, slots, scratch, head_dim)
    padded = padded_head_dim(head_dim, kv_bits)
    args = (*common, evicted, counts, page_slots, head_dim, padded)
    return instruction(kernels.address(f"join_rests_{kv_bits}"), *args, wait=wait)


def renumber(
    kernels: Addresses,
    *,
    heads: int,
    records: int,
    slots: int,
    shift: int,
    front: int,
    positions: int,
    by: int,
    scratch: int,
    wait: bool,
) -> Instruction:
    """Lower positions by `shift`, but never below a token's rank among those of its head.

    Args:
        kernels: the loaded kernels.
        heads: how many.
        records: address of int64 [heads, EV_RECORD_SLOTS].
        slots: of each head.
        shift: how much lower the position of the next token becomes.
        front: tokens before it get their rank.
        positions: address of int32 [heads, slots]: the new positions, EMPTY as before.
        by: address of int32 [heads, slots]: how much higher they are; 0 for empty slots.
        scratch: address of `scratch_bytes` for each thread.
        wait: see `instruction`.
    """
    _check(32, slots, slots)
    args = (*_common(heads, records, slots, scratch, 0), shift, front, positions, by)
    return instruction(kernels.address("renumber"), *args, wait=wait)


def rotate_keys(
    kernels: Addresses,
    *,
    kv_bits: int,
    heads: int,
    records: int,
    slots: int,
    page_slots: int,
    head_dim: int,
    by: int,
    rest_by: int,
    scratch: int,
    wait: bool,
) -> Instruction:
    """Rotate stored keys to positions `by` further, without the rope's attention factor.

    Args:
        kernels: the loaded kernels.
        kv_bits: of keys.
        heads: how many.
        records: address of int64 [heads, EV_RECORD_SLOTS].
        slots: of each head.
        page_slots: of each page but the last.
        head_dim: D.
        by: address of int32 [heads, slots]; 0 leaves a slot as it is.
        rest_by: likewise of the mean keys of all rests.
        scratch: address of `scratch_bytes` for each thread.
        wait: see `instruction`.

    Raises:
        ShapeError: sizes are not what kernels take.
    """
    _check(kv_bits, slots, page_slots)
    block = hadamard_block(head_dim)
    args = (
        *_common(heads, records, slots, scratch, head_dim),
        by,
        page_slots,
        head_dim,
        padded_head_dim(head_dim, kv_bits),
        block,
        float_bits(block**-0.5),
        rest_by,
    )
    return instruction(kernels.address(f"rotate_keys_{kv_bits}"), *args, wait=wait)


def _common(heads: int, records: int, slots: int, scratch: int, dims: int) -> tuple[int, ...]:
    return heads, records, slots, scratch, scratch_bytes(slots, dims)


def _check(kv_bits: int, slots: int, page_slots: int) -> None:
    if kv_bits not in KV_BITS:
        raise ShapeError(f"kv_bits is {kv_bits}, expected one of {KV_BITS}")
    if slots < 0 or slots % SLOT_TILE or page_slots % SLOT_TILE or page_slots < 1:
        raise ShapeError(
            f"{slots} slots in pages of {page_slots}, expected multiples of {SLOT_TILE}"
        )
