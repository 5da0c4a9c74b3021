import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgetok.errors import CheckpointError
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.safetensors_file import MAX_HEADER_BYTES
from tests.at_once import at_once


def safetensors_bytes(header, data=b""):
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def folder_with(tmp_path, content, name="model.safetensors"):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(content)
    return tmp_path


def test_reads_hand_written_bytes(tmp_path):
    data = struct.pack("<3f", 1.5, -2.0, 0.25) + bytes([0x80, 0x3F, 0x40, 0xC0]) + b"\x00\x3c"
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [3, 1], 0, 12),
        "b": entry("BF16", [2], 12, 16),
        "c": entry("F16", [], 16, 18),
    }
    checkpoint = open_checkpoint(folder_with(tmp_path, safetensors_bytes(header, data)))
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.generation_config == {}
    assert checkpoint.names == ("a", "b", "c")
    assert checkpoint.shapes == {"a": (3, 1), "b": (2,), "c": ()}
    assert checkpoint.tensor("a").tolist() == [[1.5], [-2.0], [0.25]]
    assert checkpoint.tensor("a", rows=(1, 3)).tolist() == [[-2.0], [0.25]]
    assert checkpoint.tensor("a", rows=(2, 2)).shape == (0, 1)
    assert checkpoint.tensor("b").tolist() == [1.0, -3.0]
    assert checkpoint.tensor("c").item() == 1.0
    assert [piece.shape for piece in checkpoint.rows("a", 2)] == [(2, 1), (1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_agrees_with_torch(tmp_path, dtype):
    torch.manual_seed(0)
    tensors = {f"t{n}": torch.randn(n, 7).to(dtype) for n in (1, 5, 64)}
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for name, value in tensors.items():
        result = checkpoint.tensor(name)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, value.to(torch.float32).numpy())


def test_shards_and_generation_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    a, b = torch.ones(2, 3), torch.full((4,), 2.0)
    save_file({"a": a}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": b}, tmp_path / "model-00002-of-00002.safetensors")
    index = {
        "metadata": {"total_size": 40},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        },
    }
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.generation_config["eos_token_id"] == [2, 3]
    assert checkpoint.nbytes == 40
    assert checkpoint.tensor("b").tolist() == [2.0] * 4

    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError,
        match=r"1 of 2 files of weights are missing: model-00002-of-00002\S*; finish",
    ):
        open_checkpoint(tmp_path)
    save_file({"a": a, "b": b}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'a' also lies in"):
        open_checkpoint(tmp_path)
    save_file({"c": b}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'b', which it does not"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a\\x.safetensors", "x.bin", "", 3, None]
)
def test_shard_names_must_be_plain(tmp_path, shard):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        open_checkpoint(tmp_path)


def test_hub_cache_links_load(tmp_path):
    """A folder as huggingface_hub lays it out: names link to blobs two folders up."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(3)}, blobs / "f00d")
    (blobs / "beef").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00d")
    (snapshot / "config.json").symlink_to("../../blobs/beef")
    assert open_checkpoint(snapshot).tensor("a").tolist() == [1.0] * 3


OK4 = entry("F32", [1], 0, 4)
HUGE = [4194305, 4194305, 211106198978564]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors_bytes({"a": entry("F32", HUGE, 0, 16)}, bytes(16)), "does not match bytes"),
        (safetensors_bytes({"a": entry("F32", [2], 0, 8)}, bytes(7)), "ends at byte"),
        (safetensors_bytes({"a": OK4}, bytes(5)), "1 bytes after the last tensor"),
        (safetensors_bytes({"a": OK4, "b": entry("F32", [1], 2, 6)}, bytes(6)), "overlaps"),
        (safetensors_bytes({"a": OK4, "b": OK4}, bytes(4)), "overlaps"),
        (safetensors_bytes({"a": OK4, "b": entry("F32", [1], 8, 12)}, bytes(12)), "hole"),
        (safetensors_bytes({"a": entry("F32", [1], 4, 8)}, bytes(8)), "hole"),
        (safetensors_bytes({"a": entry("F32", [1], 4, 0)}, bytes(8)), "not a begin and an end"),
        (safetensors_bytes({"a": entry("F32", [-1], 0, 4)}, bytes(4)), "not a list of sizes"),
        (safetensors_bytes({"a": entry("F32", [True], 0, 4)}, bytes(4)), "not a list of sizes"),
        (safetensors_bytes({"a": entry("F32", [1.0], 0, 4)}, bytes(4)), "not a list of sizes"),
        (safetensors_bytes({"a": entry("F32", [1] * 9, 0, 4)}, bytes(4)), "not a list of sizes"),
        (safetensors_bytes({"a": entry("Q7", [1], 0, 4)}, bytes(4)), "unknown dtype 'Q7'"),
        (safetensors_bytes({"a": entry(["F32"], [1], 0, 4)}, bytes(4)), "unknown dtype"),
        (safetensors_bytes({"a": {**OK4, "extra": 1}}, bytes(4)), "expected dtype, shape"),
        (safetensors_bytes({"a": 3}, bytes(4)), "expected dtype, shape"),
        (safetensors_bytes(b'{"a": NaN}'), "NaN"),
        (safetensors_bytes(b'{"a": 1, "a": 2}'), "occurs twice"),
        (safetensors_bytes(b"[]"), "expected an object"),
        (safetensors_bytes(b"{" * 200_000), "nested"),
        (struct.pack("<Q", 100) + b"{}", "download may be incomplete"),
        (struct.pack("<Q", 2**63) + b"{}", "header of"),
        (b"\x01\x02", "not a safetensors file"),
        (b"", "not a safetensors file"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, content, says):
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        open_checkpoint(folder_with(tmp_path, content))
    assert says in str(caught.value)


def test_huge_headers_and_a_million_tensors_are_refused_at_once(tmp_path):
    folder = folder_with(tmp_path, safetensors_bytes(b" " * 100_000_000))
    with at_once(), pytest.raises(CheckpointError, match="header of 100,000,000 bytes"):
        open_checkpoint(folder)
    million = b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000)
    )
    folder_with(tmp_path, safetensors_bytes(b"{" + million + b"}"))
    with at_once(), pytest.raises(CheckpointError, match="header of"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (b'"%d":0', "keys, expected at most 327,680"),
        (b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', "keys, expected at most"),
    ],
)
def test_as_many_tensors_as_the_header_holds(tmp_path, one, says):
    many = b",".join(one % i for i in range(MAX_HEADER_BYTES // (len(one) + 6)))
    folder = folder_with(tmp_path, safetensors_bytes(b"{" + many + b"}"))
    with at_once(), pytest.raises(CheckpointError, match=says):
        open_checkpoint(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_inf_are_named(tmp_path, bad, dtype):
    value = torch.zeros(5, 3)
    value[4, 1] = bad
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": value.to(dtype)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for rows in (None, (3, 5)):
        with pytest.raises(CheckpointError, match=r"tensor 'w' holds -?(nan|inf) at \[4, 1\]"):
            checkpoint.tensor("w", rows)
    assert checkpoint.tensor("w", (0, 4)).shape == (4, 3)


def test_beyond_float32_and_other_dtypes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    tensors = {
        "d": torch.tensor([1e39], dtype=torch.float64),
        "i": torch.tensor([1]),
        "s": torch.tensor(3.0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds 1e\+39, beyond float32 at \[0\]"):
        checkpoint.tensor("d")
    with pytest.raises(CheckpointError, match="dtype I64"):
        checkpoint.tensor("i")
    with pytest.raises(CheckpointError, match="'absent' is missing"):
        checkpoint.tensor("absent")
    with pytest.raises(CheckpointError, match=r"rows 0\.\.2"):
        checkpoint.tensor("s", (0, 2))


def test_file_that_shrinks_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1000)}, path)
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="became shorter"):
        checkpoint.tensor("w")


def test_fingerprint_follows_the_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4)}, path)
    first = open_checkpoint(tmp_path).fingerprint
    assert open_checkpoint(tmp_path).fingerprint == first
    (tmp_path / "config.json").write_text('{"a": 1}')
    second = open_checkpoint(tmp_path).fingerprint
    assert second != first
    os.utime(path, (1, 1))
    assert open_checkpoint(tmp_path).fingerprint not in (first, second)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickles_and_remote_code_are_never_touched(tmp_path):
    folder, canary = tmp_path / "model", tmp_path / "canary"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "llama"}'
    )
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Config: pass\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(str(canary))))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle.*safe_serialization"):
        open_checkpoint(folder)
    save_file({"w": torch.zeros(4)}, folder / "model.safetensors")
    assert open_checkpoint(folder).names == ("w",)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "no such folder"),
        ([], "has no config.json"),
        (["adapter_config.json"], "an adapter, not a whole model; merge it"),
        (["config.json"], "has no safetensors file"),
        (["config.json", "a.safetensors", "b.safetensors"], "no model.safetensors.index.json"),
    ],
)
def test_incomplete_folders(tmp_path, files, says):
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(folder)


def test_what_git_left_out_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)
