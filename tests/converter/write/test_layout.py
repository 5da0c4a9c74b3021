"""The layout of tensors, and writing them in any order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgetok.converter.write.data_file import DataFile, TensorFormat, linear_shapes, plan
from edgetok.errors import ArtefactError, OutputError, ShapeError
from edgetok.formats.layout import LinearShape, linear_tensors
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec

SPEC = DecoderSpec(
    family="test",
    vocab_size=101,
    hidden_size=40,
    intermediate_size=52,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    layers=(LayerSpec(),),
    ropes=(RopeSpec(theta=1e4, rotary_dim=8),),
    context_tokens=64,
    norm_eps=1e-5,
    attn_scale=0.4,
    qkv_bias=True,
    qk_norm="head",
    post_norm=True,
)


def formats_of(spec: DecoderSpec, form: TensorFormat) -> dict[str, TensorFormat]:
    return {name: form for name in linear_shapes(spec)}


def test_by_hand() -> None:
    formats = formats_of(SPEC, TensorFormat(4, 16, zeros=True))
    formats["layers.0.o_proj"] = TensorFormat(16)
    formats["layers.0.up_proj"] = TensorFormat(3, 32, zeros=True)
    layout = plan(SPEC, formats)
    result = {n: (s.dtype, s.shape, s.nbytes) for n, s in layout.tensors.items()}
    # 40 inputs are three groups of 16 or two of 32; 52 are four of 16.
    assert list(result.items())[:9] == [
        ("embed_tokens.qweight", ("uint8", (101, 24), 2424)),
        ("embed_tokens.scales", ("float16", (101, 3), 606)),
        ("embed_tokens.zeros", ("uint8", (101, 2), 202)),
        ("layers.0.input_norm.weight", ("float32", (40,), 160)),
        ("layers.0.q_proj.qweight", ("uint8", (32, 3, 8), 768)),
        ("layers.0.q_proj.scales", ("float16", (32, 3), 192)),
        ("layers.0.q_proj.zeros", ("uint8", (32, 2), 64)),
        ("layers.0.q_proj.bias", ("float32", (32,), 128)),
        ("layers.0.k_proj.qweight", ("uint8", (16, 3, 8), 384)),
    ]
    assert result["layers.0.q_norm.weight"] == ("float32", (8,), 32)
    assert result["layers.0.o_proj.weight"] == ("float16", (40, 32), 2560)
    assert result["layers.0.up_proj.qweight"] == ("uint8", (52, 2, 8), 832)
    assert result["layers.0.up_proj.qweight_high"] == ("uint8", (52, 2, 4), 416)
    assert result["layers.0.up_proj.zeros"] == ("uint8", (52, 2), 104)
    assert result["layers.0.down_proj.qweight"] == ("uint8", (40, 4, 8), 1280)
    assert list(result)[-4:] == [
        "final_norm.weight",
        "lm_head.qweight",
        "lm_head.scales",
        "lm_head.zeros",
    ]
    assert layout.weight_bytes == sum(nbytes for _, _, nbytes in result.values())
    # Every tensor here fits into one page, and one page is added.
    assert [s.offset for s in layout.tensors.values()] == [4096 * i for i in range(len(result))]
    assert layout.file_bytes == 4096 * (len(result) + 1)


def test_tables_take_no_pages() -> None:
    spec = dataclasses.replace(SPEC, hidden_size=64, intermediate_size=64)
    plain = plan(spec, formats_of(spec, TensorFormat(4)))
    layout = plan(spec, formats_of(spec, TensorFormat(4, table=True)))
    assert layout.file_bytes == plain.file_bytes
    offsets = {name: slot.offset for name, slot in layout.tensors.items()}
    scales = layout.tensors["layers.0.q_proj.scales"]
    begin = scales.offset + scales.nbytes
    assert begin <= offsets.pop("layers.0.q_proj.table") < begin + 64
    assert all(at % 4096 == 0 for name, at in offsets.items() if not name.endswith(".table"))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tied_embedding_is_another_name_for_the_heads_bytes(bits: int) -> None:
    spec = dataclasses.replace(SPEC, tied=True)
    layout = plan(spec, formats_of(spec, TensorFormat(bits)))
    head, embedding = layout.tensors["lm_head.qweight"], layout.aliases["embed_tokens.qweight"]
    assert (embedding.offset, embedding.nbytes) == (head.offset, head.nbytes)
    assert embedding.shape == (101, head.shape[1] * head.shape[2])
    assert not any(name.startswith("embed_tokens") for name in layout.tensors)


def test_sizes_beyond_64_bits_do_not_wrap() -> None:
    spec = dataclasses.replace(
        SPEC,
        vocab_size=1 << 24,
        hidden_size=1 << 20,
        intermediate_size=1 << 22,
        layers=(LayerSpec(),) * 4096,
    )
    layout = plan(spec, formats_of(spec, TensorFormat(32)))
    inner_bytes = 3 * 4 * (1 << 42) * 4096
    assert layout.file_bytes > inner_bytes + 2 * 4 * (1 << 44)
    offsets = [slot.offset for slot in layout.tensors.values()]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("name", ["lm_head", "layers.1.q_proj"])
def test_formats_must_name_the_specs_layers(name: str) -> None:
    formats = formats_of(SPEC, TensorFormat(4))
    if name in formats:
        del formats[name]
    else:
        formats[name] = TensorFormat(4)
    with pytest.raises(ArtefactError, match=name):
        plan(SPEC, formats)


@pytest.mark.parametrize(
    ("bits", "group_size"), [(6, 64), (7, 32), (4, 48), (4, 0), (3, 8), (0, 32)]
)
def test_formats_that_no_operator_takes(bits: int, group_size: int) -> None:
    with pytest.raises(ArtefactError):
        TensorFormat(bits, group_size)


def test_any_order_and_interruption_give_the_same_file(tmp_path: Path) -> None:
    layout = plan(SPEC, formats_of(SPEC, TensorFormat(4)))
    rng = np.random.default_rng(0)
    values = {
        n: rng.integers(0, 256, s.nbytes).astype(np.uint8).view(s.dtype).reshape(s.shape)
        for n, s in layout.tensors.items()
    }
    names = list(values)
    with DataFile(tmp_path / "a", layout) as file:
        for name in names:
            file.write(name, values[name])
    with DataFile(tmp_path / "b", layout) as file:
        for name in names[::-2]:
            file.write(name, values[name])
        file.sync()
    with DataFile(tmp_path / "b", layout) as file:
        for name in set(names) - set(names[::-2]):
            file.write(name, values[name])
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    assert len(data) == layout.file_bytes
    for name, slot in layout.tensors.items():
        assert data[slot.offset : slot.offset + slot.nbytes] == values[name].tobytes()


def test_a_file_of_another_size_is_begun_again(tmp_path: Path) -> None:
    layout = plan(SPEC, formats_of(SPEC, TensorFormat(4)))
    (tmp_path / "a").write_bytes(b"\xff" * 100)
    DataFile(tmp_path / "a", layout).close()
    assert (tmp_path / "a").read_bytes() == bytes(layout.file_bytes)


def test_embedding_codes_may_come_as_groups(tmp_path: Path) -> None:
    layout = plan(SPEC, formats_of(SPEC, TensorFormat(4, 16)))
    codes = np.arange(101 * 24, dtype=np.uint32).astype(np.uint8).reshape(101, 3, 8)
    with DataFile(tmp_path / "a", layout) as file:
        file.write("embed_tokens.qweight", codes)
    assert (tmp_path / "a").read_bytes()[:2424] == codes.tobytes()


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    layout = plan(SPEC, formats_of(SPEC, TensorFormat(16)))
    with DataFile(tmp_path / "a", layout) as file:
        for values in (
            np.zeros((32, 40), np.float32),
            np.zeros((40, 32), np.float16),
            np.zeros(1280, np.float16),
        ):
            with pytest.raises(ShapeError, match="q_proj"):
                file.write("layers.0.q_proj.weight", values)


def test_no_room(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, vocab_size=1 << 24, hidden_size=1 << 20)
    layout = plan(spec, formats_of(spec, TensorFormat(32)))
    with pytest.raises(OutputError, match="not enough space"):
        DataFile(tmp_path / "a", layout)
    with pytest.raises(OutputError, match="cannot be written"):
        DataFile(tmp_path / "missing" / "a", layout)


@pytest.mark.parametrize(
    ("bits", "more"),
    [
        (5, {"zeros": True}), (4, {"zeros": True, "offsets": True}),
        (6, {"zeros": True, "supers": True}), (2, {"supers": True}), (3, {"offsets": True}),
        (8, {"offsets": True}), (8, {"table": True}), (4, {"zeros": True, "table": True}),
        (4, {"offsets": True, "table": True}),
    ],
)  # fmt: skip
def test_groups_that_no_kernel_takes(bits: int, more: dict[str, bool]) -> None:
    with pytest.raises(ArtefactError):
        TensorFormat(bits, 16 if bits == 6 else 32, **more)


@pytest.mark.parametrize("form", [{"group_size": 16}, {"group_size": 64}, {"offsets": True}])
def test_6_bits_without_super_scales_have_groups_of_32_alone(form: dict[str, int]) -> None:
    TensorFormat(6, 32)
    with pytest.raises(ArtefactError, match="6 bits in groups of"):
        TensorFormat(6, **form)


def test_planes_and_super_scales_by_hand() -> None:
    shape = LinearShape(3, 512)
    five = linear_tensors("a", shape, TensorFormat(5, offsets=True, supers=True))
    assert five == {
        "a.qweight": ("uint8", (3, 16, 16)), "a.qweight_high": ("uint8", (3, 16, 4)),
        "a.scales": ("int8", (3, 16)), "a.offsets": ("int8", (3, 16)),
        "a.super_scales": ("float16", (3, 2, 2)),
    }  # fmt: skip
    six = linear_tensors("a", shape, TensorFormat(6, 16, supers=True))
    assert six == {
        "a.qweight": ("uint8", (3, 32, 8)), "a.qweight_high": ("uint8", (3, 32, 4)),
        "a.scales": ("int8", (3, 32)), "a.super_scales": ("float16", (3, 2, 1)),
    }  # fmt: skip
    plain = linear_tensors("a", LinearShape(3, 96), TensorFormat(6, 32))
    assert plain == {
        "a.qweight": ("uint8", (3, 3, 16)), "a.qweight_high": ("uint8", (3, 3, 8)),
        "a.scales": ("float16", (3, 3)),
    }  # fmt: skip
    three = linear_tensors("a", shape, TensorFormat(3, 16, supers=True))
    assert three == {
        "a.qweight": ("uint8", (3, 32, 4)), "a.qweight_high": ("uint8", (3, 32, 2)),
        "a.scales": ("int8", (3, 32)), "a.super_scales": ("float16", (3, 2, 1)),
    }  # fmt: skip
    table = linear_tensors("a", shape, TensorFormat(4, supers=True, table=True))
    assert table == {
        "a.qweight": ("uint8", (3, 16, 16)), "a.scales": ("int8", (3, 16)),
        "a.super_scales": ("float16", (3, 2, 1)), "a.table": ("int8", (16,)),
    }  # fmt: skip
    with pytest.raises(ArtefactError, match="a multiple of 256"):
        linear_tensors("a", LinearShape(3, 288), TensorFormat(6, 16, supers=True))
    with pytest.raises(ArtefactError, match="a multiple of 32"):
        linear_tensors("a", LinearShape(3, 40), TensorFormat(5))
    with pytest.raises(ArtefactError, match="a multiple of 32, two at least"):
        linear_tensors("a", LinearShape(3, 32), TensorFormat(6))
