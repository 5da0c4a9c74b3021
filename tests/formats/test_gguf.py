"""The table of a GGUF file, against bytes written by hand."""

import struct

import numpy as np
import pytest

from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.gguf import BLOCKS, is_gguf, open_gguf
from tests.at_once import at_once


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def info(name, shape, kind, offset):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def header(tensors=0, fields=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def padded(data, to=32):
    return data + bytes(-len(data) % to)


def write(tmp_path, data):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


def test_reads_hand_written_bytes(tmp_path):
    table = header(2, 8) + b"".join([
        field("a.u8", 0, b"\xff"),
        field("a.i16", 3, struct.pack("<h", -2)),
        field("a.f32", 6, struct.pack("<f", 1e-5)),
        field("a.flag", 7, b"\1"),
        field("a.text", 8, string("né")),
        field("a.strings", 9, struct.pack("<IQ", 8, 2) + string("x") + string("")),
        field("a.numbers", 9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, -2, 3)),
        field("a.u64", 10, struct.pack("<Q", 1 << 40)),
        info("w", (32, 3), 2, 32),
        info("v", (5,), 0, 0),
    ])  # fmt: skip
    start = len(padded(table))
    file = open_gguf(write(tmp_path, padded(table) + padded(bytes(20)) + padded(bytes(3 * 18))))
    fields = dict(file.fields)
    assert fields.pop("a.numbers").tolist() == [1, -2, 3]
    assert fields == {
        "a.u8": 255, "a.i16": -2, "a.f32": 1e-05, "a.flag": True, "a.text": "né",
        "a.strings": ["x", ""], "a.u64": 1 << 40,
    }  # fmt: skip
    assert {n: (i.dtype, i.shape, i.begin - start, i.nbytes) for n, i in file.infos.items()} == {
        "v": ("F32", (5,), 0, 20),
        "w": ("Q4_0", (3, 32), 32, 54),
    }


def test_blocks_are_those_of_the_package():
    gguf = pytest.importorskip("gguf")
    for name, sizes in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == sizes


def one(tensor, data=b"", fields=b"", count=0):
    return padded(header(1, count) + fields + tensor) + data


KEY = string("k")
HUGE = struct.pack("<Q", 1 << 63)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", CheckpointError, "incomplete"),
        (b"GGML" + bytes(40), CheckpointError, "not a GGUF file"),
        (header(version=1), UnsupportedError, "version 1"),
        (header(version=0x03000000), UnsupportedError, "big-endian"),
        (header(tensors=1 << 62), CheckpointError, "tensors, expected at most"),
        (header(fields=1 << 62), CheckpointError, "fields, expected at most"),
        (header(fields=3), CheckpointError, "incomplete"),
        (header(fields=1) + HUGE, CheckpointError, "name of 9,223,372,036,854,775,808 bytes"),
        (header(fields=1) + KEY + struct.pack("<I", 8) + HUGE, CheckpointError, "field 'k' of"),
        (header(fields=1) + field("k", 8, string(b"\xff")), CheckpointError, "not UTF-8"),
        (header(fields=1) + field("k", 77, b""), CheckpointError, "type 77"),
        (header(fields=1) + field("k", 9, struct.pack("<I", 9) + HUGE), CheckpointError, "type 9"),
        (header(fields=1) + field("k", 9, struct.pack("<I", 5) + HUGE), CheckpointError, "takes"),
        (header(fields=1) + field("k", 9, struct.pack("<I", 8) + HUGE), CheckpointError, "strings"),
        (header(fields=1) + field("k", 9, struct.pack("<IQ", 8, 9999)), CheckpointError, "left"),
        (header(fields=2) + 2 * field("k", 0, b"\1"), CheckpointError, "'k' is there twice"),
        (one(info("w", (), 0, 0)), CheckpointError, "0 dimensions"),
        (one(info("w", (1,) * 5, 0, 0)), CheckpointError, "5 dimensions"),
        (one(info("w", (0, 3), 0, 0)), CheckpointError, r"shape \[3, 0\]"),
        (one(info("w", (33,), 2, 0)), CheckpointError, "multiple of 32"),
        (one(info("w", (32,), 999, 0)), UnsupportedError, "type 999"),
        (one(info("w", (4194305, 4194305, 211106198978564), 0, 0), bytes(64)),
         CheckpointError, "of a file of"),
        (one(info("w", (1 << 63, 1 << 63), 0, 0), bytes(64)), CheckpointError, "of a file of"),
        (one(info("w", (8,), 0, 0), bytes(31)), CheckpointError, "of a file of"),
        (one(info("w", (8,), 0, 32), bytes(64)), CheckpointError, "leaves a hole"),
        (one(info("w", (8,), 0, 0), bytes(99)), CheckpointError, "after the last tensor"),
        (one(info("w", (8,), 0, 0), bytes(32), field("general.alignment", 4, bytes(4)), 1),
         CheckpointError, "general.alignment is 0"),
        (padded(header(2) + info("w", (8,), 0, 0) + info("v", (8,), 0, 0)) + bytes(64),
         CheckpointError, "overlaps"),
        (padded(header(2) + 2 * info("w", (8,), 0, 0)) + bytes(64), CheckpointError, "twice"),
    ],
    ids=(str(i) for i in range(99)),
)  # fmt: skip
def test_what_is_refused(tmp_path, data, error, says):
    with at_once(), pytest.raises(error, match=says):
        open_gguf(write(tmp_path, data))


def message(path):
    try:
        open_gguf(path)
    except (CheckpointError, UnsupportedError) as error:
        return str(error)
    return ""


def test_any_cut_and_any_flip_is_an_error_or_harmless(tmp_path):
    """Nothing but our own errors comes out of a damaged table."""
    table = header(1, 2) + field("general.alignment", 4, struct.pack("<I", 64))
    table += field("k", 9, struct.pack("<IQ", 8, 2) + string("ab") + string("c"))
    whole = padded(table + info("w", (32, 2), 8, 0), 64) + bytes(128)
    open_gguf(write(tmp_path, whole))
    for end in range(len(whole) - 60):
        with pytest.raises(CheckpointError):
            open_gguf(write(tmp_path, whole[:end]))
    rng = np.random.default_rng(0)
    for at in range(len(table) + 60):
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        assert "\n" not in message(write(tmp_path, bytes(damaged)))


def test_what_is_one(tmp_path):
    for name, data, result in (
        ("a.gguf", b"", True), ("blob", b"GGUF....", True), ("other", b"GGMM", False)
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        assert is_gguf(tmp_path / name) == result
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize("lists", [1, 4])
def test_strings_without_end_are_refused(tmp_path, lists):
    count = (1 << 21) // lists
    strings = struct.pack("<IQ", 8, count) + bytes(8 * count)
    table = header(0, lists) + b"".join(field(f"f{i}", 9, strings) for i in range(lists))
    with (
        at_once(),
        pytest.raises(CheckpointError, match="expected at most 1,048,576 in all fields"),
    ):
        open_gguf(write(tmp_path, table))
