"""Blocks whose bytes are anything: their values are those of the `gguf` package."""

import numpy as np
import pytest

from edgetok.converter.read.gguf_codes import read_codes
from edgetok.errors import UnsupportedError

gguf = pytest.importorskip("gguf")

N, BLOCKS = 5, 3
# Where a block's float16 numbers are.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,),
    "IQ4_XS": (0,), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,),
    "TQ2_0": (64,),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "halves"), HALVES.items())
def test_any_block_with_any_scale(kind, halves):
    """Scales are drawn from the patterns of all finite float16: negative, tiny and the largest."""
    rng = np.random.default_rng(1)
    number = gguf.GGMLQuantizationType[kind]
    blocks = rng.integers(0, 256, (64, 8, gguf.GGML_QUANT_SIZES[number][1]), dtype=np.uint8)
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[np.isfinite(patterns.view(np.float16))]
    for at in halves:
        drawn = rng.choice(finite, blocks.shape[:2])
        drawn[:, :6] = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF]  # zeros, subnormals, ends
        blocks[..., at : at + 2] = drawn[..., None].view(np.uint8)
    expected = gguf.quants.dequantize(blocks.reshape(len(blocks), -1), number)
    np.testing.assert_array_equal(read_codes(kind, blocks).dequantise(), expected)


def random_blocks(kind, scale_at):
    rng = np.random.default_rng(0)
    nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = rng.integers(0, 256, (N, BLOCKS, nbytes), dtype=np.uint8)
    scales = rng.uniform(-1, 1, (N, BLOCKS)).astype(np.float16)
    blocks[..., scale_at : scale_at + 2] = scales[..., None].view(np.uint8)
    return blocks


@pytest.mark.parametrize(("kind", "scale_at"), [("TQ1_0", 52), ("TQ2_0", 64)])
def test_any_ternary_block(kind, scale_at):
    """TQ2_0's fourth code, which no writer uses, is another number here too."""
    blocks = random_blocks(kind, scale_at)
    found = read_codes(kind, blocks)
    number = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(blocks.reshape(N, -1), number)
    np.testing.assert_array_equal(found.dequantise(), expected)
    assert (found.bits, found.group_size) == (2, 256)
    assert (found.zeros is None) == (kind == "TQ1_0")


def test_a_ternary_block_by_hand():
    """Weights 0, 32, 64 and 96 share TQ2_0's first byte, lowest bits first."""
    blocks = np.full((1, 1, 66), 0b01010101, np.uint8)  # zeros
    blocks[0, 0, 0] = 0b00_10_01_10
    blocks[0, 0, 64:] = np.frombuffer(np.float16(0.75).tobytes(), np.uint8)
    values = read_codes("TQ2_0", blocks).dequantise()[0]
    assert [values[i] for i in (0, 32, 64, 96)] == [0.75, 0.0, 0.75, -0.75]
    assert np.flatnonzero(values).tolist() == [0, 64, 96]


def test_mxfp4_scales_that_float16_holds():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (N, BLOCKS, 17), dtype=np.uint8)
    blocks[..., 0] = rng.integers(104, 144, (N, BLOCKS))
    expected = gguf.quants.dequantize(blocks.reshape(N, -1), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(read_codes("MXFP4", blocks).dequantise(), expected)
    blocks[2, 1, 0] = 144
    with pytest.raises(UnsupportedError, match=r"MXFP4: a group's scale is 2\^17"):
        read_codes("MXFP4", blocks)
