"""Blocks whose bytes are anything: their values are those of the `gguf` package."""

import numpy as np
import pytest

from edgetok.converter.read.gguf_codes import read_codes
from edgetok.errors import UnsupportedError

gguf = pytest.importorskip("gguf")

N, BLOCKS = 5, 3


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
