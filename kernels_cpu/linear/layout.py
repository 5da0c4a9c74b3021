"""Layouts that the linear kernels and their launchers agree on; plain integer functions, no numba.

The kernels compile these very functions (`abi.shared`). Words: K inputs in G = ceil(K / g) groups
of weights, each a whole number of activation blocks that share a scale. `planes` is how many codes
a byte of packed weights holds (3, 5, 6 bits: of its low plane). A chunk is what one vector of
packed weights covers: planes * vector_bytes codes; plane p of a chunk is the codes p, p + planes, p
+ 2 planes, ...

Quantised activations of one token, however many there are:

    codes   [K padded to chunks] int8: chunk by chunk, VB bytes of each plane
    scales  [blocks] float32
    middles [blocks] int32: -2^(bits - 1) * the sum of the block's codes
    starts  [blocks] int32: -offset(bits) * the same sum
"""

from __future__ import annotations

from edgetok.kernels_cpu.program.abi import shared

PLANES = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 8: 1}
# Bits of a code in the plane that a product reads first, and in the other one, if there is one.
LOW_BITS = {2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 8: 8}
HIGH_BITS = {3: 1, 5: 1, 6: 2}
SUPER_GROUP = 256  # inputs that share a super-scale

# Products end a sum of float32 and begin another one after so many inputs, on every instruction set
# and for any number of tokens: bits depend on it.
SLAB = 4096
# Most tokens that a tile product computes together: buffers have room for so many more, as the last
# ones may be fewer.
TILE_TOKENS = 8
# Scratch of a thread: an unpacked tile of weights and its scales.
SCRATCH_BYTES = 1 << 18

# Slots of a matmul instruction.
MATMUL_Y = 2  # address of float32 [T, y_stride]
MATMUL_X = 3  # address of the activations: quantised, or float32 [T, K]
MATMUL_QWEIGHT = 4  # codes (3, 5, 6 bits: low ones), or float16 / float32 [N, K]
MATMUL_HIGH = 5  # 3, 5, 6 bits: the plane of high bits; or a table of 16 int8
MATMUL_SCALES = 6
MATMUL_ZEROS = 7  # of zero points, or of offsets; 0: absent
MATMUL_BIAS = 8  # address of float32 [N]; 0: absent
MATMUL_N = 9
MATMUL_K = 10
MATMUL_GROUP = 11  # group_size + (block << 32)
MATMUL_Y_STRIDE = 12  # float32 from one token's result to the next one's
MATMUL_SCRATCH = 13  # address of SCRATCH_BYTES for each thread
MATMUL_EPILOGUE = 14  # bits of float32 scale + (1 << 32 to add to y)
MATMUL_SUPERS = 15  # address of super-scales; 0: absent

# Slots of a quantise instruction.
QUANTISE_X = 2  # address of float32 [T, x_stride]
QUANTISE_QX = 3
QUANTISE_K = 4
QUANTISE_GROUP = 5  # group_size + (block << 32)
QUANTISE_BITS = 6
QUANTISE_X_STRIDE = 7
QUANTISE_ROWS = 8  # of each token

# Slots of an embed instruction.
EMBED_X = 2  # address of float32 [T, K]
EMBED_TOKENS = 3  # address of int32 [T]
EMBED_QWEIGHT = 4
EMBED_HIGH = 5  # as MATMUL_HIGH
EMBED_SCALES = 6
EMBED_ZEROS = 7
EMBED_K = 8
EMBED_GROUP_SIZE = 9
EMBED_SCALE = 10  # bits of float32
EMBED_SUPERS = 11  # grouped weights: address of super-scales, or 0; EMBED_ZEROS are offsets


def grouped_size(bits: int, supers: bool) -> int:
    """Inputs of a group of weights that may have offsets or super-scales; 0 where none may.

    Args:
        bits: of the weights.
        supers: whether they have super-scales.
    """
    if bits == 3:
        return 16 if supers else 0
    return {4: 32, 5: 32, 6: 16 if supers else 32}.get(bits, 0)


@shared
def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return (value + multiple - 1) // multiple * multiple


@shared
def padded_codes(K: int, group_size: int, planes: int, vector_bytes: int) -> int:
    """K rounded up to whole groups and then to whole chunks."""
    return round_up(round_up(K, group_size), planes * vector_bytes)


@shared
def blocks_bytes(codes: int, block: int) -> int:
    """Bytes of four-byte values for every block of `codes`, to whole cache lines."""
    return round_up(4 * ((codes + block - 1) // block), 64)


@shared
def offset_of(bits: int) -> int:
    """The number that tile products add to codes whose zero points are not the middle."""
    return 128 if bits == 8 else 1 << bits


@shared
def token_bytes(codes: int, block: int) -> int:
    """Bytes of one token; codes as from `padded_codes`."""
    # An odd number of cache lines, so that tokens read side by side lie in different cache sets.
    return round_up(codes + 3 * blocks_bytes(codes, block), 128) + 64


def activation_bytes(
    tokens: int, K: int, group_size: int, block: int, bits: int, vector_bytes: int
) -> int:
    """Bytes of a buffer that holds up to `tokens` quantised tokens."""
    codes = padded_codes(K, group_size, PLANES[bits], vector_bytes)
    return (tokens + TILE_TOKENS) * token_bytes(codes, block)
