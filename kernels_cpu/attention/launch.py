"""Instructions of attention and the layout of the KV cache. No numba here.

A cache has a record for each layer and KV head: RECORD_SLOTS int64 that say where its slots are. A
slot holds one token's key and value and knows its position, so that slots may come in any order:
rings, eviction and retained tokens need no other kernel. A slot that holds nothing has position
EMPTY, and keys, values and scales that are numbers. The number of slots is a multiple of SLOT_TILE.

Keys, values and scales lie in pages of PAGE_SLOTS slots, which may be anywhere, and which caches
with the same beginning share; positions and attention mass are one array for all slots of a head.
Of a page:

With D' = head_dim rounded up to DIM_TILE, at 4 and 5 bits to twice that (dims past head_dim are 0):

| kv_bits | keys                                            | values                          |
|---------|-------------------------------------------------|---------------------------------|
| 4       | uint8 [slots/16, D'/8, 16, 4], two dims a byte  | uint8 [slots/4, D'/2, 4]        |
| 5       | uint8 [slots/16, D'/16, 3, 16, 4], 6 bits       | uint8 [slots/4, D'/2, 4]        |
| 8       | uint8 [slots/16, D'/4, 16, 4], code + 128       | int8 [slots/4, D', 4]           |
| 16      | float16 [slots/16, D', 16]                      | float16 [slots, D']             |
| 32      | float32 [slots/16, D', 16]                      | float32 [slots, D']             |

Keys of 16 slots are interleaved, so that a vector lane is a slot and scores need no horizontal sum;
values of 4 slots, because an integer dot product adds 4 products.

At 8 bits a slot has a float32 scale for its key and one for its value: x = code * scale. At 4 bits
it has two bfloat16 numbers in their place, the scale in the low and the base in the high half:
x = code * scale + base, codes 0..15. Of 8 dims of a key, byte j holds dim j in its low half and dim
j + 4 in its high half; of 32 dims of a value, byte j holds dim j and dim j + 16.

At 5 bits, the mean of both, keys have 6 and values 4: an error of a key is one of all weights of
the softmax, so a bit there is worth more. Values are as at 4 bits. Keys have a float32 scale, x =
(code - 32) * scale. Of 16 dims of a key, the high four bits of codes are stored as 4-bit keys are,
in two words of 4 bytes; of the third word, byte j holds the low two bits of dims j, j + 4, j + 8
and j + 12, low first.

At 4, 5 and 8 bits queries, keys and values are rotated by `hadamard` before, which leaves products
of queries and keys as they are and spreads what single dims have too much of (arXiv 2404.00456,
section 4). The result of attention is rotated values, and rotated back by the same transform.
Before it, keys become (k - centre) * factor and queries q / factor, with constants of the artefact
for each KV head: subtracting one vector from all keys adds one number to all scores of a query,
which no softmax sees, and the factors cancel.

A run computes rows of several sequences; a table of parts says which rows belong to which cache
(`program/abi.py`). A row's result depends on the slots that it sees, by their numbers, and on
nothing else: not on other rows or parts, threads, the cache's capacity, or what lies in slots that
it does not see. Those may hold anything that is finite; memory that never held a slot must be 0.

Attention mass. Where a part names a workspace (PART_MASS) and a record an array (REC_MASS),
attention also keeps, for each KV head and slot s,

    mass[s] = keep * mass[s] + sum over rows t >= first and the head's query heads h of p[t, h, s]

with p the softmax, `first` = PART_MASS_FIRST (0: all rows of the part; T - 32: a window of the last
32) and `keep` = PART_MASS_KEEP (1: a running sum; 0: this run alone). No score is computed twice,
and the bits are the same for every number of threads and whatever other parts there are. Storing a
token sets its slot's mass to 0.

The rest. Where a record names one (REC_REST) that stands for n tokens, every query of the head sees
one more key and value, with n times the weight of its score: as much as n tokens with that key. It
has no position, no window hides it, and it gets no mass.
"""

from __future__ import annotations

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, float_bits, instruction

KV_BITS = (4, 5, 8, 16, 32)

SLOT_TILE = 64  # slots that attention looks at together
KEY_TILE = 16  # slots whose keys are interleaved
VALUE_TILE = 4  # slots whose values are, at 4, 5 and 8 bits
DIM_TILE = 16  # head_dim is rounded up to a multiple of it
EMPTY = 2**31 - 1  # position of a slot that holds nothing

# Slots of a record.
REC_PAGES = 0  # address of int64 [pages + 1, PAGE_FIELDS]; the last row, of zeros, is read ahead
REC_POSITIONS = 1  # address of int32 [slots]; heads may share it
REC_USED = 2  # slots past this one hold nothing
REC_APPEND = 3  # address of int32 [T]: the slot of each of the part's rows
REC_MASS = 4  # address of float32 [slots, a multiple of SLOT_TILE]; 0: no mass for this head
REC_REST = 5  # address of what stands for evicted tokens, float32 [rest_floats]; 0: nothing
RECORD_SLOTS = 8

# Of a head's rest, float32: how many tokens it stands for (0: there is none), then from REST_KEY on
# their mean key and, D' later, their mean value, both as slots hold them; dims past D are 0.
REST_KEY = 16
REST_TOKENS = 512  # most that one stands for; see `eviction/rest.py`

# Of each page of PAGE_SLOTS slots, addresses of the head's arrays.
PAGE_KEYS = 0
PAGE_VALUES = 1
PAGE_KEY_SCALES = 2  # of 4 bytes for each slot; not read without scales
PAGE_VALUE_SCALES = 3
PAGE_FIELDS = 4

(
    HADAMARD_X,
    HADAMARD_HEADS,
    HADAMARD_HEAD_DIM,
    HADAMARD_BLOCK,
    HADAMARD_SCALE,
    HADAMARD_CENTRE,
    HADAMARD_FACTOR,
    HADAMARD_GROUP,
) = range(2, 10)
APPEND_K, APPEND_V, APPEND_RECORD, APPEND_HEADS, APPEND_HEAD_DIM = range(2, 7)
(
    ATT_Q,
    ATT_OUT,
    ATT_RECORD,
    ATT_HEADS,
    ATT_KV_HEADS,
    ATT_HEAD_DIM,
    ATT_WINDOW,
    ATT_SCALE,
    ATT_CAP,
    ATT_POSITIONS,
    ATT_SCRATCH,
    ATT_SCRATCH_BYTES,
    ATT_DIM_TILE,
    ATT_SINKS,
) = range(2, 16)

ROWS = 32  # query rows (token and head) that a task computes together
ROW_BYTES = 52  # small numbers of a row, see `attention/scratch.py`
FIRST_CHUNKS = 64  # chunks of one BLOCK, before they grow (`chunk_count`)
BLOCK = 256  # slots with one softmax: few enough to share a head out, merging them costs 1 %
PAGE_SLOTS = BLOCK  # so that a block's keys lie one after the other
MASS_LANES = 8  # parts of a prefill whose mass is summed apart, and what threads share out
PARTIAL_EXTRA = 16  # float32 after a partial result: its maximum, its sum, and alignment


def padded_head_dim(head_dim: int, kv_bits: int = 8) -> int:
    """Dims that a slot has room for."""
    tile = dim_tile(kv_bits)
    return -(-head_dim // tile) * tile


def rest_floats(head_dim: int, kv_bits: int) -> int:
    """Floats of what stands for a head's evicted tokens."""
    return REST_KEY + 2 * padded_head_dim(head_dim, kv_bits)


def key_bits(kv_bits: int) -> int:
    """Bits of a key's codes."""
    return 6 if kv_bits == 5 else kv_bits


def value_bits(kv_bits: int) -> int:
    """Bits of a value's codes."""
    return 4 if kv_bits == 5 else kv_bits


def dim_tile(kv_bits: int) -> int:
    """Return the number that the dims of a slot are a multiple of."""
    return 2 * DIM_TILE if value_bits(kv_bits) == 4 else DIM_TILE


def key_bytes(head_dim: int, kv_bits: int) -> int:
    """Bytes of one key, without its scale."""
    return padded_head_dim(head_dim, kv_bits) * key_bits(kv_bits) // 8


def value_bytes(head_dim: int, kv_bits: int) -> int:
    """Bytes of one value, without its scale."""
    return padded_head_dim(head_dim, kv_bits) * value_bits(kv_bits) // 8


def scale_bytes(kv_bits: int) -> int:
    """Bytes of a key's or a value's scale."""
    return 4 if kv_bits <= 8 else 0


def chunk_count(slots: int) -> int:
    """Chunks that the first `slots` slots are cut into.

    A chunk is what a thread attends to at a time in a decode step; its result is merged as a whole.
    Where chunks end depends on nothing but the slot's number, so that results do not depend on a
    cache's capacity: FIRST_CHUNKS chunks of one BLOCK, then twice as long whenever the number of
    slots has doubled, so that even a million slots are 256 chunks.
    """
    count, begin, size = 0, 0, BLOCK
    while begin < slots:
        size = chunk_at(begin, size)
        begin += size
        count += 1
    return count


def chunk_at(begin: int, before: int) -> int:
    """Slots of the chunk that begins at `begin`, after one of `before` slots (BLOCK at first)."""
    return 2 * before if begin >= FIRST_CHUNKS * before else before


def scratch_bytes(head_dim: int) -> int:
    """Scratch memory that attention needs for each thread."""
    return ROWS * (12 * _most_dims(head_dim) + 6 * BLOCK + ROW_BYTES) + 4 * BLOCK


def mass_slots(slots: int) -> int:
    """PART_MASS_SLOTS for records of at most so many slots."""
    return -(-slots // BLOCK) * BLOCK


def mass_row_floats(slots: int) -> int:
    """float32 of a row of weights in the workspace: a weight a slot, the maximum of each block."""
    return slots + -(-slots // (BLOCK * DIM_TILE)) * DIM_TILE


def mass_workspace_bytes(slots: int, heads: int, kv_heads: int, threads: int) -> int:
    """Workspace of a part's attention mass, shared by all layers; it holds nothing between runs."""
    slots = mass_slots(slots)
    rows = max(heads, threads * ROWS)
    return 4 * (rows * mass_row_floats(slots) + kv_heads * MASS_LANES * slots)


def mass_row_bytes(slots: int, heads: int) -> int:
    """Return `mass_workspace_bytes` of a part with one row."""
    return 4 * heads * mass_row_floats(mass_slots(slots))


def partials_bytes(heads: int, head_dim: int, chunks: int) -> int:
    """Memory for the partial results of a part of one row that sees so many chunks."""
    return 4 * heads * chunks * (_most_dims(head_dim) + PARTIAL_EXTRA)


def _most_dims(head_dim: int) -> int:
    return max(padded_head_dim(head_dim, bits) for bits in KV_BITS)


def hadamard_block(head_dim: int) -> int:
    """Dims that `hadamard` mixes: the largest power of two that divides head_dim."""
    return head_dim & -head_dim


def is_rotated(kv_bits: int) -> bool:
    """Whether slots hold keys and values that `hadamard` rotated."""
    return kv_bits <= 8


def hadamard(
    kernels: Addresses,
    *,
    x: int,
    heads: int,
    head_dim: int,
    wait: bool,
    centre: int = 0,
    factor: int = 0,
    group: int = 1,
) -> Instruction:
    """Rotate each head's dims, in place; a second time, without centre and factor, rotates back.

    Args:
        kernels: the loaded kernels.
        x: address of float32 [T, heads, head_dim].
        heads: heads a token.
        head_dim: dims of a head.
        wait: see `instruction`.
        centre: address of float32 [heads / group, head_dim], subtracted before; 0: nothing is.
        factor: address of the same shape, multiplied by before; 0: none, and no centre.
        group: heads that share a row of the two.
    """
    block = hadamard_block(head_dim)
    args = (x, heads, head_dim, block, float_bits(block**-0.5), centre, factor, group)
    return instruction(kernels.address("hadamard"), *args, wait=wait)


def kv_append(
    kernels: Addresses,
    *,
    kv_bits: int,
    k: int,
    v: int,
    layer: int,
    kv_heads: int,
    head_dim: int,
    wait: bool,
) -> Instruction:
    """Store the run's keys and values into the slots that REC_APPEND names.

    Args:
        kernels: the loaded kernels.
        kv_bits: one of KV_BITS.
        k: address of float32 [T, KH, D].
        v: likewise.
        layer: which layer's records.
        kv_heads: KH.
        head_dim: D.
        wait: see `instruction`.
    """
    _check(kv_bits)
    args = (k, v, _record(layer, kv_heads), kv_heads, head_dim)
    return instruction(kernels.address(f"kv_append_{kv_bits}"), *args, wait=wait)


def attention(
    kernels: Addresses,
    *,
    kv_bits: int,
    q: int,
    out: int,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    scale: float,
    softcap: float,
    positions: int,
    scratch: int,
    sinks: int = 0,
) -> tuple[Instruction, Instruction]:
    """softmax(softcap(scale * q k^T)) v over the slots that each query may see.

    A query at position p sees slots with positions p - window + 1 .. p, all up to p where window is
    0; a negative window reaches to both sides, p + window + 1 .. p - window - 1. A head's sink is
    one more score, of a value of zeros: e^sink is added to what its softmax divides by. Two
    instructions: the second merges what the first left of parts of one row.

    Args:
        kernels: the loaded kernels.
        kv_bits: one of KV_BITS.
        q: address of float32 [T, H, D].
        out: address of the same shape.
        layer: which layer's records.
        heads: H.
        kv_heads: KH.
        head_dim: D.
        window: see above.
        scale: of the products.
        softcap: c tanh(x / c) of the scaled products; 0 is none.
        positions: address of int32 [T], the queries' positions.
        scratch: address of `scratch_bytes` for each thread.
        sinks: address of float32 [H]; 0: there are none.

    Raises:
        ShapeError: sizes do not go together.
    """
    _check(kv_bits)
    if heads % kv_heads:
        raise ShapeError(f"{heads} heads, expected a multiple of {kv_heads} key heads")
    args = (
        q,
        out,
        _record(layer, kv_heads),
        heads,
        kv_heads,
        head_dim,
        window,
        float_bits(scale),
        float_bits(softcap),
        positions,
        scratch,
        scratch_bytes(head_dim),
        dim_tile(kv_bits),
        sinks,
    )
    return (
        instruction(kernels.address(f"attention_{kv_bits}"), *args, wait=True),
        instruction(kernels.address("attention_merge"), *args, wait=True),
    )


def _record(layer: int, kv_heads: int) -> int:
    """Byte offset of a layer's first record."""
    return 8 * RECORD_SLOTS * layer * kv_heads


def _check(kv_bits: int) -> None:
    if kv_bits not in KV_BITS:
        raise ShapeError(f"kv_bits is {kv_bits}, expected one of {KV_BITS}")
